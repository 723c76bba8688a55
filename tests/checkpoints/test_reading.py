"""What a checkpoint is refused for, one reason at a time."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tamiyo_stream.checkpoints import reading
from tamiyo_stream.checkpoints.compatibility import registries_to_adopt
from tamiyo_stream.checkpoints.reading import Trust
from tamiyo_stream.checkpoints.refusal import Reason
from tamiyo_stream.graph.registries import Registries, digest_of
from tests.checkpoints.samples import (
    FORMS,
    WRITERS,
    file_of,
    read,
    refusal_of,
    sample_checkpoint,
    sample_document,
    sample_file,
    sample_registries,
    sample_state,
)

Change = Callable[[dict[str, Any]], Any]


def changed(change: Change, form: str = ".safetensors") -> bytes:
    document = sample_document()
    change(document)
    return file_of(form, document)


def test_a_file_larger_than_the_cap_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: no machine could read it
    assert refusal_of(path).reason is Reason.SIZE


def test_what_has_no_size_is_read_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    assert refusal_of(Path("/dev/zero")).reason is Reason.SIZE
    assert refusal_of(bytes(1001)).reason is Reason.SIZE


def test_a_file_of_another_size_than_announced_is_refused() -> None:
    refused = refusal_of(sample_file(".pt"), Trust(size_bytes=5))
    assert refused.reason is Reason.SIZE
    assert "5 were announced" in str(refused)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused = refusal_of(tmp_path / "none.pt")
    assert refused.reason is Reason.UNREADABLE
    assert "none.pt" in str(refused)


def test_the_announced_digest_is_checked_before_the_file_is_opened() -> None:
    assert refusal_of(b"anything", Trust(sha256="0" * 64)).reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_the_announced_digest_is_read(form: str) -> None:
    data = sample_file(form)
    digest = hashlib.sha256(data).hexdigest()
    assert read(data, Trust(sha256=digest.upper(), size_bytes=len(data))).policy_version == "policy-7"


@pytest.mark.parametrize("data", [b"", b"PK", b"GIF89a", bytes(100), b"PK\x03\x04" + bytes(50)])
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    assert refusal_of(data).reason is Reason.NOT_A_CHECKPOINT


@pytest.mark.parametrize("form", FORMS)
def test_an_altered_document_is_refused_without_an_announced_digest(form: str) -> None:
    document = sample_document()
    document["provenance"]["note"] = "another note"
    assert refusal_of(WRITERS[form](document, sample_state())).reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", "other"), ("format_version", 2), ("architecture_version", "gnn_v2"), ("format_version", None)],
)
def test_another_version_is_refused(field: str, value: Any) -> None:
    refused = refusal_of(changed(lambda document: document.update({field: value})))
    assert refused.reason is Reason.VERSION
    assert field in str(refused)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(hidden_width=64), "hidden_width is 64, here 8"),
        (lambda config: config.update(hidden_width=8.0), "hidden_width is 8.0"),
        (lambda config: config.update(dropout=1.0), "dropout is 1.0"),
        (lambda config: config.update(layers=4), "'layers'"),
        (lambda config: config.pop("num_actions"), "'num_actions'"),
    ],
)
def test_another_config_is_refused(change: Change, named: str) -> None:
    refused = refusal_of(changed(lambda document: change(document["config"])))
    assert refused.reason is Reason.CONFIG
    assert named in str(refused)


def test_another_manifest_is_refused_and_the_difference_named() -> None:
    refused = refusal_of(changed(lambda document: document["manifest"]["nodes"]["seed"].update(raw_width=96)))
    assert refused.reason is Reason.MANIFEST
    assert "manifest.nodes.seed.raw_width is 96, here 64" in str(refused)


def test_a_manifest_digest_that_is_not_its_manifests_is_refused() -> None:
    refused = refusal_of(changed(lambda document: document.update(manifest_digest="0" * 64)))
    assert refused.reason is Reason.MANIFEST


def swap_actions(document: dict[str, Any]) -> None:
    actions = document["actions"]
    actions[2], actions[5] = actions[5], actions[2]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_actions, "actions[2] is 'cull', here 'pause'"),
        (lambda document: document["policy_params"][0].update(high=2.0), "policy_params[0].high is 2.0"),
        (lambda document: document["blending_methods"].reverse(), "blending_methods[0]"),
        (lambda document: document["actions"].pop(), "actions has 31 entries, here 32"),
        (lambda document: document.pop("actions"), "actions is None"),
    ],
)
def test_another_action_table_is_refused(change: Change, named: str) -> None:
    refused = refusal_of(changed(change))
    assert refused.reason is Reason.ACTION_TABLE
    assert named in str(refused)


def renumber(document: dict[str, Any], name: str, entries: dict[str, Any]) -> None:
    document["registries"][name] = {"entries": entries, "digest": digest_of(entries)}


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("seed", {"seed0": 2, "seed1": 1}),
        ("seed", {"seed0": 1, "other": 2}),
        ("seed", {"seed0": 1, "seed1": 1}),
        ("seed", {"seed0": 1, "seed1": 2, "seed2": 5000}),
        ("seed", {"seed0": 1, "seed1": 2, "seed2": 0}),
        ("seed", {"seed0": 1, "seed1": 2, "seed2": 3.0}),
        ("seed", {"": 1}),
        ("optimizer_family", {"adam": 1, "sgd": 2}),
    ],
)
def test_a_registry_that_renumbers_is_refused(name: str, entries: dict[str, Any]) -> None:
    data = changed(lambda document: renumber(document, name, entries))
    refused = refusal_of(data, registries=sample_registries())
    assert refused.reason is Reason.REGISTRY_RENUMBERED
    assert name in str(refused)


def test_a_vocabulary_that_is_missing_or_unknown_is_refused() -> None:
    for change in (
        lambda document: document["registries"].pop("seed"),
        lambda document: document["registries"].update(other={"entries": {}, "digest": digest_of({})}),
        lambda document: document["registries"].update(seed=[]),
    ):
        assert refusal_of(changed(change)).reason is Reason.REGISTRY_RENUMBERED


def test_a_registry_whose_digest_is_not_its_own_is_refused() -> None:
    refused = refusal_of(changed(lambda document: document["registries"]["seed"]["entries"].update(seed2=3)))
    assert refused.reason is Reason.REGISTRY_DIGEST_MISMATCH


def test_a_checkpoint_of_fewer_categories_fits_and_nothing_is_adopted() -> None:
    live = sample_registries("seed2", "seed3")
    checkpoint = read(sample_file(".pt"), registries=live)
    assert registries_to_adopt(checkpoint.registries, live) == {}


def test_a_checkpoint_of_more_categories_fits_and_says_what_to_adopt() -> None:
    live = Registries()
    checkpoint = read(sample_file(".pt"), registries=live)
    adopted = registries_to_adopt(checkpoint.registries, live)
    assert adopted == {"seed": {"seed0": 1, "seed1": 2}}
    assert live["seed"].entries == {}
    live["seed"].adopt(adopted["seed"])
    assert registries_to_adopt(checkpoint.registries, live) == {}


@pytest.mark.parametrize("norm", [{"mean": 0.5}, {"mean": 0.5, "var": -1.0, "count": 1}, None])
def test_norms_that_are_none_are_refused(norm: Any) -> None:
    refused = refusal_of(changed(lambda document: document["norms"].update(loss=norm)))
    assert refused.reason is Reason.NORMS
    assert "loss" in str(refused)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("policy_version"),
        lambda document: document.update(policy_version=""),
        lambda document: document.update(policy_version="x" * 201),
        lambda document: document.update(provenance=None),
        lambda document: document["provenance"].pop("created_by"),
        lambda document: document["provenance"].update(training_runs=[1]),
        lambda document: document["provenance"].update(created_at_ns="today"),
        lambda document: document.update(config=[]),
        lambda document: document.update(registries=3),
        lambda document: document.pop("state_digest"),
    ],
)
def test_a_document_without_one_of_its_fields_is_refused(change: Change) -> None:
    assert refusal_of(changed(change)).reason is Reason.NOT_A_CHECKPOINT


@pytest.mark.parametrize("form", FORMS)
def test_missing_and_unknown_tensors_are_named(form: str) -> None:
    state = sample_state()
    state["heads.extra"] = state.pop("heads.risk.0.bias")
    refused = refusal_of(file_of(form, state=state))
    assert refused.reason is Reason.NAMES
    assert "heads.extra" in str(refused)
    assert "heads.risk.0.bias" in str(refused)


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_of_another_shape_is_named(form: str) -> None:
    document, state = sample_document(), sample_state() | {"heads.risk.0.bias": torch.zeros(9)}
    document["tensors"]["heads.risk.0.bias"]["shape"] = [9]
    refused = refusal_of(file_of(form, document, state))
    assert refused.reason is Reason.SHAPES
    assert "heads.risk.0.bias" in str(refused)


def test_a_document_that_describes_other_tensors_is_refused() -> None:
    data = changed(lambda document: document["tensors"]["heads.risk.0.bias"].update(shape=[9]))
    assert refusal_of(data).reason is Reason.SHAPES


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.bfloat16])
def test_a_tensor_of_another_type_is_named(dtype: torch.dtype) -> None:
    state = sample_state()
    state["heads.risk.0.bias"] = state["heads.risk.0.bias"].to(dtype)
    refused = refusal_of(file_of(".pt", state=state))
    assert refused.reason is Reason.DTYPES
    assert "heads.risk.0.bias" in str(refused)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(form: str, value: float) -> None:
    state = sample_state()
    state["heads.risk.3.weight"][0, 0] = value
    refused = refusal_of(file_of(form, state=state))
    assert refused.reason is Reason.NOT_FINITE
    assert "heads.risk.3.weight" in str(refused)


def test_weights_whose_sum_overflows_are_finite() -> None:
    state = sample_state()
    state["heads.risk.3.weight"].fill_(3e38)
    assert refusal_of(file_of(".pt", state=state)).reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("form", FORMS)
def test_an_altered_weight_is_refused_without_an_announced_digest(form: str) -> None:
    state = sample_state()
    state["heads.risk.3.weight"][0, 0] += 1e-3
    assert refusal_of(file_of(form, state=state)).reason is Reason.DIGEST_MISMATCH


class LegacyNetwork(nn.Module):
    """The feed-forward policy of old."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        LegacyNetwork().state_dict(),
        dict(LegacyNetwork().state_dict()),
        {**LegacyNetwork().state_dict(), "_metadata": {"architecture_version": "v0", "registries": {}}},
        {"state_dict": LegacyNetwork().state_dict(), "epoch": 3},
        {"model": LegacyNetwork().state_dict()},
        dict(LegacyNetwork().named_parameters()),
    ],
)
def test_a_legacy_feed_forward_checkpoint_is_refused_by_name(content: Any) -> None:
    refused = refusal_of(saved(content))
    assert refused.reason is Reason.LEGACY_FFN
    assert "net.0.weight" in str(refused)
    assert "feed-forward" in str(refused)


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, 3, {"format": "x", "state_dict": 3}])
def test_an_archive_without_weights_is_refused(content: Any) -> None:
    assert refusal_of(saved(content)).reason is Reason.NOT_A_CHECKPOINT


def test_reading_leaves_the_live_registries_alone() -> None:
    live = sample_registries("more")
    before = live.snapshots()
    read(sample_file(".pt"), registries=live)
    assert live.snapshots() == before
    assert sample_checkpoint().registries["seed"] == {"seed0": 1, "seed1": 2}
