"""Registry snapshots of offline training are taken over where they continue ours, else refused."""

from __future__ import annotations

import pytest

from schemas.simic import RegistrySnapshot
from tamiyo_stream.graph.registries import Registries, digest_of
from tamiyo_stream.graph.registry_exchange import SnapshotRefused, merge_snapshot


def snapshot(entries: dict[str, int], *, registry: str = "layer_type", digest: str = "") -> RegistrySnapshot:
    return RegistrySnapshot(
        registry=registry,
        entries=entries,
        digest=digest or digest_of(entries),
        issued_at=1,
    )


def test_keys_that_continue_ours_are_taken_over() -> None:
    registries = Registries()
    registries.index("layer_type", "linear")
    assert merge_snapshot(registries, snapshot({"linear": 1, "conv2d": 2, "embedding": 3})) == 2
    assert registries.index("layer_type", "embedding") == 3
    assert registries.index("layer_type", "new") == 4


def test_a_snapshot_that_knows_less_changes_nothing() -> None:
    registries = Registries()
    for key in ("linear", "conv2d"):
        registries.index("layer_type", key)
    assert merge_snapshot(registries, snapshot({"linear": 1})) == 0
    assert registries["layer_type"].entries == {"linear": 1, "conv2d": 2}


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (snapshot({"conv2d": 1, "linear": 2}), "registry_renumbered"),
        (snapshot({"linear": 1, "conv2d": 1}), "registry_renumbered"),
        (snapshot({"linear": 1, "conv2d": 4096}), "registry_renumbered"),
        (snapshot({"linear": 1}, registry="layer_typo"), "registry_unknown"),
        (snapshot({"linear": 1, "conv2d": 2}, digest="0" * 64), "registry_digest_mismatch"),
    ],
)
def test_what_contradicts_ours_is_refused_and_changes_nothing(offered: RegistrySnapshot, reason: str) -> None:
    registries = Registries()
    registries.index("layer_type", "linear")
    with pytest.raises(SnapshotRefused, match=offered.registry) as refused:
        merge_snapshot(registries, offered)
    assert refused.value.reason == reason
    assert registries["layer_type"].entries == {"linear": 1}
