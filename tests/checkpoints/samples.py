"""A small checkpoint, its files, and the same with something changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.signing import Keyring
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.document import SEAL, document_of, seal_of
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.checkpoints.tensor_file import write_tensor_file
from tamiyo_stream.checkpoints.torch_archive import write_archive
from tamiyo_stream.checkpoints.writing import encode_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.network import build_network
from tamiyo_stream.runs.state import EwmaNorm

#: Every tensor of the real network, few numbers in each.
TINY = TamiyoGNNConfig(
    hidden_width=8, activation_width=8, attention_width=8, attention_heads=2, head_width=8, telemetry_width=8
)
KEYRING = Keyring({"k1": b"secret"})
WRITERS: dict[str, Callable[..., bytes]] = {".pt": write_archive, ".safetensors": write_tensor_file}
FORMS = sorted(WRITERS)


def sample_registries(*keys: str) -> Registries:
    """Return registries that know ``keys`` as seeds."""
    registries = Registries()
    for key in ("seed0", "seed1", *keys):
        registries.index("seed", key)
    return registries


@cache
def sample_checkpoint() -> Checkpoint:
    """Return a tiny checkpoint with every field filled."""
    return Checkpoint.of(
        build_network(TINY, seed=1),
        policy_version="policy-7",
        provenance=Provenance("trainer", ("run-1", "run-2"), "ab" * 32, "a note", 1_700_000_000_000_000_000),
        registries=sample_registries().snapshots(),
        norms={"loss": EwmaNorm(0.5, 0.25, 12)},
    )


@cache
def sample_file(form: str) -> bytes:
    """Return the sample checkpoint's file."""
    return encode_checkpoint(sample_checkpoint(), form)


def sample_document() -> dict[str, Any]:
    """Return the sample checkpoint's document, to be changed."""
    return copy.deepcopy(document_of(sample_checkpoint()))


def sample_state() -> dict[str, Tensor]:
    """Return a copy of the sample checkpoint's weights."""
    return {name: value.clone() for name, value in sample_checkpoint().state.items()}


def file_of(form: str, document: dict[str, Any] | None = None, state: dict[str, Tensor] | None = None) -> bytes:
    """Return a file with this content, sealed, whether or not it makes sense."""
    document = document or sample_document()
    document |= {SEAL: seal_of(document)}
    return WRITERS[form](document, sample_state() if state is None else state)


def read(data: Any, trust: Trust | None = None, registries: Registries | None = None) -> Checkpoint:
    """Read a tiny checkpoint."""
    return read_checkpoint(data, trust, registries=registries, config=TINY)


def refusal_of(data: Any, trust: Trust | None = None, registries: Registries | None = None) -> CheckpointRefused:
    """Return why ``data`` is refused; it must be."""
    with pytest.raises(CheckpointRefused) as caught:
        read(data, trust, registries)
    assert isinstance(caught.value.reason, Reason)
    return caught.value


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints have the same content."""
    fields = ("config", "policy_version", "provenance", "registries", "norms")
    return all(getattr(one, name) == getattr(other, name) for name in fields) and (
        one.state.keys() == other.state.keys()
        and all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    )
