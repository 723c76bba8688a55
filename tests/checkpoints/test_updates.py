"""The checkpoint that a policy update announces."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from schemas.simic import PolicyUpdate
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.checkpoints.updates import path_of, read_update
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.network import build_network


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy in a folder whose name needs quoting in a URL."""
    path = tmp_path_factory.mktemp("a policy") / "tamiyo_gnn_v1.pt"
    registries = Registries().snapshots()
    checkpoint = Checkpoint.of(
        build_network(), policy_version="policy-1", provenance=Provenance("trainer"), registries=registries
    )
    write_checkpoint(path, checkpoint)
    return path


def update_of(path: Path, **changes: Any) -> PolicyUpdate:
    data = path.read_bytes()
    fields: dict[str, Any] = {
        "policy_id": "p",
        "issued_at": 1,
        "tamiyo_policy_version": "tamiyo_gnn_v1",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "uri": path.as_uri(),
    }
    return PolicyUpdate(**fields | changes)


def refusal_of(update: PolicyUpdate) -> Reason:
    with pytest.raises(CheckpointRefused) as caught:
        read_update(update, Registries())
    return caught.value.reason


def test_the_file_it_points_to_is_read_by_url_or_path(path: Path) -> None:
    for uri in (path.as_uri(), str(path), path.as_uri().replace("file://", "file://localhost")):
        assert read_update(update_of(path, uri=uri), Registries()).policy_version == "policy-1"


def test_a_checkpoint_in_the_update_itself_is_read(path: Path) -> None:
    update = update_of(path, uri=None, payload=path.read_bytes())
    assert read_update(update, Registries()).policy_version == "policy-1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, Reason.DIGEST_MISMATCH),
        ({"size_bytes": 7}, Reason.SIZE),
        ({"tamiyo_policy_version": "gnn_v2"}, Reason.VERSION),
        ({"uri": "https://example.org/tamiyo_gnn_v1.pt"}, Reason.UNREADABLE),
        ({"uri": "file://elsewhere/tamiyo_gnn_v1.pt"}, Reason.UNREADABLE),
        ({"uri": "/nowhere/tamiyo_gnn_v1.pt"}, Reason.UNREADABLE),
        ({"uri": ""}, Reason.UNREADABLE),
        ({"uri": "file:///tamiyo%00.pt"}, Reason.UNREADABLE),
        ({"uri": None, "payload": b""}, Reason.SIZE),
    ],
)
def test_what_is_not_as_announced_is_refused(path: Path, changes: dict[str, Any], reason: Reason) -> None:
    assert refusal_of(update_of(path, **changes)) is reason


def test_a_policy_that_numbers_a_category_otherwise_is_refused(path: Path, tmp_path: Path) -> None:
    registries = Registries()
    registries.index("seed", "b")
    other = tmp_path / "other.pt"
    checkpoint = Checkpoint.of(
        build_network(),
        policy_version="policy-2",
        provenance=Provenance("trainer"),
        registries=registries.snapshots(),
    )
    write_checkpoint(other, checkpoint)
    live = Registries()
    live.index("seed", "a")
    with pytest.raises(CheckpointRefused) as caught:
        read_update(update_of(other), live)
    assert caught.value.reason is Reason.REGISTRY_RENUMBERED
    assert read_update(update_of(path), live).policy_version == "policy-1"


def test_a_plain_path_is_taken_as_it_is() -> None:
    assert path_of("/policies/100%25.pt") == Path("/policies/100%25.pt")
    assert path_of("file:///policies/100%25.pt") == Path("/policies/100%.pt")
