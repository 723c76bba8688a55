"""A recorded run is decided again: the same policy says the same, bit for bit, another one something else."""

from __future__ import annotations

import json
import math
from functools import partial

import msgspec
import pytest
from anyio import to_thread

from schemas.catalogue import Stream
from schemas.enums import Override, SeedLifecycleStage
from schemas.kasmina import SeedExport, SeedState
from schemas.operator import OperatorDirective
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.bench.synthetic_run import synthetic_packet, synthetic_run, synthetic_tables
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.network import build_network
from tamiyo_stream.replay import commands
from tamiyo_stream.replay.comparison import differences
from tamiyo_stream.replay.grouping import group_steps
from tamiyo_stream.replay.policies import registries_of
from tamiyo_stream.replay.recorder import RunNotFound
from tamiyo_stream.replay.replaying import Policy, replay
from tamiyo_stream.runs.snapshot import decode_snapshot
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.worker.service import build_engine

STEPS = 10
SAFE_MODE = OperatorDirective(issued_at=1, issued_by="op", conservative=Override.ON)


async def publish_tables(upstream, blueprint) -> None:
    tables = synthetic_tables(blueprint)
    for known in (*tables.hosts.values(), *tables.kernels.values()):
        await upstream.publish(Stream.BLUEPRINTS, known)
    for sheet in tables.sheets.values():
        await upstream.publish(Stream.SAFETY, sheet)


async def play(upstream) -> None:
    """Publish a run with everything a decision may depend on: backlog, refusals, exports, an operator's word."""
    blueprint, _, _ = synthetic_run(120, 400)
    await publish_tables(upstream, blueprint)
    decided = 0
    for step in range(1, STEPS + 1):
        if step % 3 == 1:
            stage = SeedLifecycleStage.DORMANT if step == 1 else SeedLifecycleStage.TRAINING
            export = [SeedState(seed_id=f"s{n}", stage=stage, alpha=0.1 * step) for n in range(2)]
            await upstream.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=step, seeds=export))
        if step == 6:
            await upstream.publish(Stream.POLICY, SAFE_MODE)
        packet = synthetic_packet(blueprint, step=step, seed=step)
        for event_id in ("e", "e") if step == 4 else ("e",):
            await upstream.publish(Stream.STATE, packet, event_id=f"{event_id}{step}")
        if step in {2, 3}:
            continue  # three at once: two of them may be superseded

        async def answered(packet_id: str = packet.packet_id) -> bool:
            return any(command.packet_id == packet_id for command in await upstream.commands())

        await upstream.until(answered, f"step {step} is decided")
        decided += 1
    assert decided == STEPS - 2
    await upstream.publish(Stream.STATE, synthetic_packet(blueprint, step=3), event_id="late")

    async def refused() -> bool:
        events = [event.description for packet in await upstream.telemetry() for event in packet.events]
        return "state_stale" in events

    await upstream.until(refused, "the late packet is refused")
    await upstream.publish(Stream.STATE, synthetic_packet(blueprint, step=STEPS + 1))

    async def ended() -> bool:
        return any(command.global_step == STEPS + 1 for command in await upstream.commands())

    await upstream.until(ended, "the last step is decided")


async def replayed(recording, settings, engine):
    policy = Policy(engine, registries_of(recording.header))
    found = await replay(group_steps(recording), recording.shared, policy, settings, RunState(run_id="run"))
    return [differences(item.step.command, item.command) for item in found]


async def test_the_same_policy_decides_the_same_bit_for_bit(upstream, worker, recorded, engine) -> None:
    async with worker():
        await play(upstream)
    recording = await recorded()
    found = await replayed(recording, upstream.settings, engine)
    assert len(found) == len(recording.commands) >= STEPS - 2
    assert found == [{}] * len(found)
    assert recording.header.decided == len(found)


async def test_another_policy_shows_in_what_the_network_said(upstream, worker, recorded, engine) -> None:
    async with worker():
        await play(upstream)
    other = InferenceEngine(
        build_network(TamiyoGNNConfig(), seed=7), policy_version="other", policy_digest="d", device="cpu"
    )
    found = await replayed(await recorded(), upstream.settings, other)
    assert all("annotations.policy_value_estimate" in step for step in found)
    assert {step["annotations.policy_version"][1] for step in found} == {"other"}
    assert not any({"packet_id", "annotations.coverage_map", "command_id"} & step.keys() for step in found)


class FailingEngine:
    """The engine, but that it fails from the second batch on."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._calls = 0

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def infer(self, graphs):
        self._calls += 1
        if self._calls > 1:
            raise RuntimeError("the device is gone")
        return self._engine.infer(graphs)


async def test_failures_of_the_machine_are_replayed_and_open_the_breaker_again(
    upstream, worker, recorded, engine
) -> None:
    async with worker(engine=FailingEngine(engine)):
        for step in range(1, 8):
            await upstream.step(step)
            await upstream.decided(step)
    reasons = [command.annotations["risk_reason"] for command in await upstream.commands()]
    assert {"inference_failed", "breaker_open"} <= set(reasons)
    assert await replayed(await recorded(), upstream.settings, engine) == [{}] * 7


async def test_late_answers_are_replayed_as_late(upstream, worker, recorded, engine) -> None:
    async with worker(decision_deadline_ms=0.001):
        for step in range(1, 4):
            await upstream.step(step)
            await upstream.decided(step)
    settings = upstream.settings.model_copy(update={"decision_deadline_ms": 0.001})
    recording = await recorded()
    assert {item.message.annotations["risk_reason"] for item in recording.commands} == {"timeout_inference"}
    assert await replayed(recording, settings, engine) == [{}] * 3


async def test_categories_keep_the_numbers_that_other_runs_gave_them(upstream, worker, recorded, engine) -> None:
    blueprint, packet, _ = synthetic_run(60, 200)
    async with worker():
        await upstream.publish(Stream.BLUEPRINTS, blueprint)
        others = [SeedState(seed_id=f"of another run {n}", stage=SeedLifecycleStage.TRAINING) for n in range(3)]
        await upstream.publish(Stream.SEEDS, SeedExport(run_id="earlier", timestamp_ns=1, seeds=others))
        await upstream.step(1, run_id="earlier", blueprint_id=blueprint.blueprint_id)
        await upstream.decided(1)
        seeds = [SeedState(seed_id="s1", stage=SeedLifecycleStage.TRAINING)]
        await upstream.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=1, seeds=seeds))
        await upstream.publish(Stream.STATE, packet)
        await upstream.decided(2)
    recording = await recorded()
    numbers = recording.header.registries["seed"]
    assert numbers["s1"] > numbers["of another run 0"]
    assert await replayed(recording, upstream.settings, engine) == [{}]


async def test_the_replayed_run_ends_in_the_state_that_was_saved(upstream, worker, recorded, engine) -> None:
    async with worker():
        await play(upstream)
    saved = decode_snapshot(await upstream.bus.hget("tamiyo:run:{0}:run", "state"))
    recording = await recorded()
    run = RunState(run_id="run")
    policy = Policy(engine, registries_of(recording.header))
    await replay(group_steps(recording), recording.shared, policy, upstream.settings, run)
    for field in ("norms", "history", "conservative", "breakers", "seeds", "pauses", "counters"):
        assert msgspec.msgpack.encode(getattr(run, field)) == msgspec.msgpack.encode(getattr(saved, field)), field


async def test_a_part_of_a_run_can_be_recorded(upstream, worker, recorded) -> None:
    async with worker():
        ids = [await upstream.step(1)]
        await upstream.decided(1)
        ids.append(await upstream.step(2))
        await upstream.decided(2)
    first = await recorded(to_id=ids[0])
    assert [item.message.packet_id for item in first.inputs] == ["run-1"]


async def test_a_run_that_is_not_there_is_named(upstream, recorded) -> None:
    with pytest.raises(RunNotFound, match="'run'"):
        await recorded()
    await upstream.step(1)
    with pytest.raises(RunNotFound, match=r"oona\.tamiyo\.commands"):
        await recorded()


async def test_entries_that_no_worker_would_use_are_left_out(upstream, worker, recorded) -> None:
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
        await upstream.bus.xadd("oona.tolaria.state", {"type": "SystemStatePacket", "payload": b"x"})
        own = TelemetryPacket(packet_id="p", timestamp=1, source_subsystem="tamiyo")
        await upstream.publish(Stream.EMERGENCY, own)
        await upstream.step(2)
        await upstream.decided(2)
    recording = await recorded()
    assert [item.message.packet_id for item in recording.inputs] == ["run-1", "run-2"]
    assert not recording.shared


async def test_commands_record_and_replay_a_run_and_say_what_differs(upstream, worker, tmp_path) -> None:
    plain = {"executor": "reference", "device": "cpu"}
    settings = upstream.settings.model_copy(update=plain)
    engine = await to_thread.run_sync(build_engine, settings)
    async with worker(engine=engine, **plain):
        await upstream.step(1)
        await upstream.decided(1)
        second = await upstream.step(2, training_loss=math.nan)
        await upstream.decided(2)
    file, checkpoint = tmp_path / "run.rec", tmp_path / "other.pt"
    assert await to_thread.run_sync(commands.record, settings, "run", file) == 0
    write_checkpoint(
        checkpoint,
        Checkpoint.of(
            build_network(TamiyoGNNConfig(), seed=3),
            policy_version="three",
            provenance=Provenance("a test"),
            registries=Registries().snapshots(),
        ),
    )
    same = await to_thread.run_sync(commands.replay_file, settings, file)
    assert (same["commands"], same["identical"], same["warnings"]) == (2, 2, [])
    assert same["recorded_policies"] == [same["policy"]] == [engine.policy_digest]
    assert await to_thread.run_sync(commands.show_report, same, None) == 0
    other = await to_thread.run_sync(commands.replay_file, settings, file, checkpoint)
    assert other["identical"] == 0
    target = tmp_path / "report.json"
    assert await to_thread.run_sync(commands.show_report, other, target) == 1
    assert json.loads(target.read_text())["differences"][0]["packet_id"] == "run-1"
    against = await to_thread.run_sync(commands.replay_file, settings, file, checkpoint, checkpoint)
    assert (against["identical"], against["compared_with"]) == (2, other["policy"])
    late = tmp_path / "late.rec"
    await to_thread.run_sync(partial(commands.record, settings, "run", late, from_id=second))
    (warning,) = (await to_thread.run_sync(commands.replay_file, settings, late))["warnings"]
    assert second in warning
