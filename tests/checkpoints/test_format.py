"""The two forms of the file: what is written is what is read, byte for byte."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch

from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance, expected_shapes
from tamiyo_stream.checkpoints.document import document_of
from tamiyo_stream.checkpoints.reading import read_checkpoint
from tamiyo_stream.checkpoints.writing import encode_checkpoint
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.manifest import feature_manifest
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import RELATIONS
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import build_network
from tests.checkpoints.samples import (
    FORMS,
    TINY,
    read,
    same,
    sample_checkpoint,
    sample_file,
    sample_registries,
)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_back(form: str) -> None:
    assert same(read(sample_file(form)), sample_checkpoint())


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_that_was_read_is_written_with_the_same_bytes(form: str) -> None:
    for origin in FORMS:
        assert encode_checkpoint(read(sample_file(origin)), form) == sample_file(form)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_do_not_depend_on_the_order_or_identity_of_what_is_given(form: str) -> None:
    ours = sample_checkpoint()
    rebuilt = Checkpoint(
        config=TamiyoGNNConfig.from_dict(json.loads(json.dumps(ours.config.to_dict()))),
        state={name: ours.state[name].clone() for name in reversed(list(ours.state))},
        policy_version="".join(["policy", "-", "7"]),
        provenance=replace(ours.provenance, training_runs=tuple("".join(["run-", n]) for n in "12")),
        registries={
            name: dict(reversed(list(entries.items()))) for name, entries in reversed(ours.registries.items())
        },
        norms=dict(ours.norms),
    )
    assert encode_checkpoint(rebuilt, form) == sample_file(form)


def test_torch_itself_loads_the_archive_with_weights_only() -> None:
    content = torch.load(io.BytesIO(sample_file(".pt")), weights_only=True)
    assert content["config"] == TINY.to_dict()
    assert content["manifest"] == feature_manifest()
    build_network(TINY).load_state_dict(content["state_dict"])


def test_the_tensor_file_is_laid_out_as_the_format_says() -> None:
    data, ours = sample_file(".safetensors"), sample_checkpoint()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert all(type(value) is str for value in header.pop("__metadata__").values())
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(entry["shape"])
        assert torch.equal(values, ours.state[name])


def test_the_document_gives_the_shape_of_every_tensor_and_row() -> None:
    document = document_of(sample_checkpoint())
    assert {name: tuple(entry["shape"]) for name, entry in document["tensors"].items()} == expected_shapes(TINY)
    nodes = document["manifest"]["nodes"]
    assert {name: entry["raw_width"] for name, entry in nodes.items()} == {
        name: schema.raw_width for name, schema in NODES.items()
    }
    assert [entry["width"] for entry in document["manifest"]["relations"]] == [entry.width for entry in RELATIONS]


def test_expected_shapes_are_those_of_the_network() -> None:
    state = build_network(TINY).state_dict()
    assert expected_shapes(TINY) == {name: tuple(value.shape) for name, value in state.items()}


def test_the_digest_is_the_one_that_commands_carry() -> None:
    assert sample_checkpoint().digest == state_digest(build_network(TINY, seed=1))


def test_the_network_of_a_checkpoint_has_its_weights_and_is_in_evaluation_mode() -> None:
    network = sample_checkpoint().network()
    assert state_digest(network) == sample_checkpoint().digest
    assert not network.training


def test_a_checkpoint_keeps_its_weights_when_training_goes_on() -> None:
    network = build_network(TINY)
    checkpoint = Checkpoint.of(
        network,
        policy_version="p",
        provenance=Provenance("trainer"),
        registries=Registries().snapshots(),
    )
    before = checkpoint.digest
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    assert checkpoint.digest == before


@pytest.mark.parametrize("form", FORMS)
def test_the_real_network_is_written_and_read(form: str) -> None:
    checkpoint = Checkpoint.of(
        build_network(),
        policy_version="p",
        provenance=Provenance("trainer"),
        registries=sample_registries().snapshots(),
    )
    assert read_checkpoint(encode_checkpoint(checkpoint, form)).digest == checkpoint.digest


def test_dropout_is_the_trainers_choice() -> None:
    changed = replace(sample_checkpoint(), config=replace(TINY, dropout=0.5))
    assert read(encode_checkpoint(changed)).config.dropout == 0.5


def test_reading_draws_no_random_numbers() -> None:
    """A training process that loads a policy goes on as it would have."""
    before = torch.get_rng_state()
    expected_shapes.cache_clear()
    read(sample_file(".pt")).network()
    assert torch.equal(torch.get_rng_state(), before)
