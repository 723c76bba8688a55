"""Blueprints, safety sheets, vocabularies and policy updates: read by every worker, told about, never lost."""

from __future__ import annotations

import json

from structlog.testing import capture_logs

from schemas.catalogue import Stream
from schemas.simic import PolicyUpdate, RegistrySnapshot
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from tamiyo_stream.graph.registries import digest_of
from tamiyo_stream.worker.service import NORMS_FILE
from tests.graph.samples import sample_blueprint, sample_kernel


def metrics_of(packet) -> dict[str, float]:
    return {metric.name: metric.value for metric in packet.metrics}


def snapshot(entries: dict[str, int]) -> RegistrySnapshot:
    return RegistrySnapshot(registry="layer_type", entries=entries, digest=digest_of(entries), issued_at=1)


async def test_missing_safety_sheets_are_counted_until_they_arrive(upstream, worker) -> None:
    host = sample_blueprint()
    await upstream.publish(Stream.BLUEPRINTS, host)
    await upstream.publish(Stream.BLUEPRINTS, sample_kernel("k1"))
    await upstream.publish(Stream.SAFETY, BlueprintSafetyFailed(blueprint_id="k1", reason="oom", issued_at=1))
    names = {"blueprint_id": host.blueprint_id, "blueprint_version": host.blueprint_version}
    async with worker():
        await upstream.step(1, **names)
        await upstream.decided(1)
        for blueprint_id in (host.blueprint_id, "k1"):
            await upstream.publish(Stream.SAFETY, BlueprintSafetySheet(blueprint_id=blueprint_id, issued_at=2))
        step = 1

        async def sheets_are_known() -> bool:
            nonlocal step
            step += 1
            await upstream.step(step, **names)
            await upstream.decided(step)
            return metrics_of((await upstream.telemetry())[-1])["tamiyo.gnn.bsds_missing"] == 0

        await upstream.until(sheets_are_known, "the sheets are known")
    first, last = (metrics_of(packet) for packet in [(await upstream.telemetry())[i] for i in (0, -1)])
    assert (first["tamiyo.gnn.bsds_missing"], first["tamiyo.gnn.bsds_failed"]) == (2, 1)
    assert last["tamiyo.gnn.bsds_failed"] == 0


async def test_a_registry_snapshot_numbers_what_comes_after_it(upstream, worker) -> None:
    entries = {"attention": 1, "linear": 2}
    await upstream.publish(Stream.POLICY, snapshot(entries))
    host = sample_blueprint()
    await upstream.publish(Stream.BLUEPRINTS, host)
    async with worker():
        await upstream.step(1, blueprint_id=host.blueprint_id, blueprint_version=host.blueprint_version)
        await upstream.decided(1)
    path = upstream.settings.var_dir / "registries" / "layer_type_registry.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert {key: saved[key] for key in entries} == entries


async def test_a_snapshot_that_renumbers_goes_to_the_dead_letter_and_the_next_one_counts(upstream, worker) -> None:
    for entries in ({"linear": 1}, {"linear": 2}, {"linear": 1, "conv2d": 2}):
        await upstream.publish(Stream.POLICY, snapshot(entries))
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
    assert [letter[b"dead_letter_reason"] for letter in await upstream.dead_letters()] == [b"registry_renumbered"]
    saved = (upstream.settings.var_dir / "registries" / "layer_type_registry.json").read_text(encoding="utf-8")
    assert json.loads(saved)["conv2d"] == 2


async def test_a_policy_update_is_taken_note_of(upstream, worker) -> None:
    update = PolicyUpdate(
        policy_id="p7",
        issued_at=7,
        tamiyo_policy_version="tamiyo_gnn_v1",
        sha256="ab" * 32,
        size_bytes=1,
        uri="file:///checkpoint.pt",
    )
    await upstream.publish(Stream.POLICY, update)
    with capture_logs() as lines:
        async with worker():
            await upstream.step(1)
            await upstream.decided(1)
    assert [line["policy_id"] for line in lines if line["event"] == "policy_update_received"] == ["p7"]


async def test_missing_features_are_logged_once_per_run(upstream, worker) -> None:
    host = sample_blueprint()
    await upstream.publish(Stream.BLUEPRINTS, host)
    names = {"blueprint_id": host.blueprint_id, "blueprint_version": host.blueprint_version}
    with capture_logs() as lines:
        for worker_id in ("w1", "w2"):  # a successor does not repeat it
            async with worker(worker_id=worker_id):
                for step in range(1, 4):
                    at = step + 3 * (worker_id == "w2")
                    await upstream.step(at, **names)
                    await upstream.decided(at)
    (line,) = [line for line in lines if line["event"] == "missing_features"]
    assert line["run_id"] == "run"
    assert "layer.bsds_risk_score" in line["missing"]
    assert 0 < line["coverage"] < 1


async def test_norms_are_exported_and_serve_a_run_whose_saved_state_is_gone(upstream, worker) -> None:
    async with worker():
        for step in range(1, 4):
            await upstream.step(step, training_loss=3.0)
            await upstream.decided(step)
    path = upstream.settings.var_dir / NORMS_FILE
    exported = json.loads(path.read_text(encoding="utf-8"))["runs"]["run"]["loss"]
    assert exported["count"] == 3
    await upstream.bus.flushdb()
    async with worker(worker_id="w2"):
        await upstream.step(1, training_loss=3.0)
        await upstream.decided(1)
    assert json.loads(path.read_text(encoding="utf-8"))["runs"]["run"]["loss"]["count"] == 4


async def test_a_damaged_norms_file_is_put_aside_and_said(upstream, worker) -> None:
    path = upstream.settings.var_dir / NORMS_FILE
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, "runs": {"run"', encoding="utf-8")
    with capture_logs() as lines:
        async with worker():
            await upstream.step(1)
            await upstream.decided(1)
    assert "norms_unreadable" in [line["event"] for line in lines]
    assert path.with_name(NORMS_FILE + ".corrupt").exists()
    assert json.loads(path.read_text(encoding="utf-8"))["runs"]["run"]
