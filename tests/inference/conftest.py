"""One untrained network for all tests that do not change it."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    # PyG 2.8 scripts a class while it is imported, which torch 2.13 calls deprecated; nothing here depends on it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    from tamiyo_stream.model.network import TamiyoGNN, build_network


torch.set_num_threads(1)  # a second thread that waits for a busy core makes small products many times slower


@pytest.fixture(scope="module")
def network() -> TamiyoGNN:
    return build_network(seed=7)
