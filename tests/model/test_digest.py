"""The digest names the weights."""

from __future__ import annotations

import torch

from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import build_network


def test_equal_weights_have_equal_digests() -> None:
    assert state_digest(build_network(seed=1)) == state_digest(build_network(seed=1))


def test_one_changed_bit_changes_the_digest() -> None:
    network = build_network(seed=1)
    before = state_digest(network)
    with torch.no_grad():
        network.heads.value[-1].bias.add_(1e-6)
    assert state_digest(network) != before


def test_dtype_and_name_are_part_of_the_digest() -> None:
    zeros = torch.nn.ParameterDict({"a": torch.zeros(2)})
    assert state_digest(zeros) != state_digest(torch.nn.ParameterDict({"b": torch.zeros(2)}))
    assert state_digest(zeros) != state_digest(
        torch.nn.ParameterDict({"a": torch.zeros(2, dtype=torch.int32).float().half()})
    )
