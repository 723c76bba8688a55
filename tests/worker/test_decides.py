"""The worker as a whole: every step gets exactly one signed, explained command."""

from __future__ import annotations

import json
import math

import pytest

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.enums import CommandType, SeedLifecycleStage
from schemas.kasmina import SeedExport, SeedState
from schemas.partitions import partition_of
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.policy.signature import verify_command
from tamiyo_stream.runs.snapshot import decode_snapshot
from tests.graph.samples import sample_blueprint


async def test_every_step_is_answered_once_with_a_signed_command(upstream, worker) -> None:
    async with worker():
        for step in range(1, 6):
            await upstream.step(step)
            await upstream.decided(step)
    commands = await upstream.commands()
    assert [(c.global_step, c.packet_id) for c in commands] == [(s, f"run-{s}") for s in range(1, 6)]
    assert len({c.command_id for c in commands}) == 5
    for command in commands:
        verify_command(command, upstream.settings.keyring)
    assert await upstream.pending() == 0


async def test_what_was_published_before_the_worker_started_is_decided(upstream, worker) -> None:
    await upstream.step(1)
    async with worker():
        await upstream.decided(1)


async def test_under_backlog_the_newest_step_is_decided_and_names_the_older_ones(upstream, worker) -> None:
    for step in range(1, 8):
        await upstream.step(step)
    async with worker():
        (command,) = await upstream.decided(1)
    assert command.global_step == 7
    assert command.superseded_packet_ids == [f"run-{step}" for step in range(1, 7)]
    assert await upstream.pending() == 0


async def test_two_runs_at_once_stay_separate(upstream, worker) -> None:
    async with worker():
        for step in range(1, 4):
            await upstream.step(step, run_id="a", training_loss=1.0)
            await upstream.step(step, run_id="b", training_loss=9.0)
            await upstream.decided(2 * step)
    commands = await upstream.commands()
    for run_id in ("a", "b"):
        assert [c.global_step for c in commands if c.run_id == run_id] == [1, 2, 3]
    deltas = [m.value for p in await upstream.telemetry() for m in p.metrics if m.name == "tamiyo.loss_delta"]
    assert deltas == [0.0] * 4  # never the difference between the two runs


async def test_a_step_published_twice_or_late_is_refused_on_the_record(upstream, worker) -> None:
    async with worker():
        await upstream.step(5, event_id="e5")
        await upstream.decided(1)
        await upstream.step(5, event_id="e5")
        await upstream.step(4)

        async def refused() -> bool:
            events = [e.description for p in await upstream.telemetry() for e in p.events]
            return {"state_duplicate", "state_stale"} <= set(events)

        await upstream.until(refused, "both refusals are on the bus")
    assert len(await upstream.commands()) == 1
    assert await upstream.pending() == 0


async def test_a_restarted_worker_goes_on_where_the_last_one_stopped(upstream, worker) -> None:
    async with worker(worker_id="w1"):
        await upstream.step(1)
        await upstream.decided(1)
    async with worker(worker_id="w2"):
        await upstream.step(1)  # refused: already decided by the first worker
        await upstream.step(2)
        await upstream.decided(2)
    assert [c.global_step for c in await upstream.commands()] == [1, 2]
    saved = await upstream.bus.hget("tamiyo:run:{0}:run", "state")
    run = decode_snapshot(saved)
    assert (run.last_step, run.counters["decided"], run.counters["stale"]) == (2, 2, 1)


async def test_a_worker_that_takes_over_gets_the_same_norms_as_one_that_never_stopped(
    upstream, worker, tmp_path
) -> None:
    async def norms() -> dict[str, object]:
        return decode_snapshot(await upstream.bus.hget("tamiyo:run:{0}:run", "state")).norms

    losses = [2.0, 1.5, 1.25]
    async with worker():
        for step, loss in enumerate(losses, 1):
            await upstream.step(step, training_loss=loss)
            await upstream.decided(step)
    uninterrupted = await norms()
    await upstream.bus.flushall()
    for step, loss in enumerate(losses, 1):
        async with worker(worker_id=f"w{step}", var_dir=tmp_path / "successors"):
            await upstream.step(step, training_loss=loss)
            await upstream.decided(step)
    assert await norms() == uninterrupted
    assert "loss" in uninterrupted


async def test_an_exported_seed_reaches_the_decision(upstream, worker) -> None:
    seeds = [SeedState(seed_id="s1", stage=SeedLifecycleStage.TRAINING)]
    async with worker():
        await upstream.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=1, seeds=seeds))

        async def taken() -> object:
            return await upstream.bus.exists("tamiyo:run:{0}:run")

        await upstream.until(taken, "the seeds are saved")
        await upstream.step(1)
        (command,) = await upstream.decided(1)
    assert json.loads(command.annotations["coverage_types"])["node.seed"] > 0
    assert decode_snapshot(await upstream.bus.hget("tamiyo:run:{0}:run", "state")).seeds.keys() == {"s1"}
    assert await upstream.pending(Stream.SEEDS) == 0


async def test_a_blueprint_published_just_before_its_first_step_is_used_for_it(upstream, worker) -> None:
    blueprint = sample_blueprint()
    async with worker():
        await upstream.publish(Stream.BLUEPRINTS, blueprint)
        await upstream.step(1, blueprint_id=blueprint.blueprint_id, blueprint_version=blueprint.blueprint_version)
        (command,) = await upstream.decided(1)
    assert '"layer.layer_type":1.0' in command.annotations["coverage_map"]
    assert blueprint.graph is not None
    assert any(layer in command.annotations["why"] for layer in blueprint.graph.layers.layer_id)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
async def test_a_loss_that_is_not_finite_gets_a_pause_that_says_so(upstream, worker, loss) -> None:
    async with worker():
        await upstream.step(1, training_loss=loss)
        (command,) = await upstream.decided(1)
    assert command.command_type is CommandType.PAUSE
    assert command.target_seed_id == ""
    assert command.annotations["risk_reason"] == "loss_not_finite"


async def test_a_second_worker_takes_over_when_the_first_lets_go(upstream, worker) -> None:
    async with worker(worker_id="w1") as stop, worker(worker_id="w2"):
        await upstream.step(1)
        await upstream.decided(1)
        stop.set()  # whichever of the two holds the lease: the other one must serve
        for step in (2, 3):
            await upstream.step(step)
            await upstream.decided(step)
    assert [c.global_step for c in await upstream.commands()] == [1, 2, 3]


async def test_a_worker_that_lost_its_lease_unnoticed_publishes_nothing_and_its_successor_decides(
    upstream, worker
) -> None:
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
        await upstream.bus.set("tamiyo:fence:{0}", "another worker's token")
        await upstream.step(2)  # the commit fails, the lease is taken anew, the entry is decided then
        await upstream.decided(2)
    assert [c.global_step for c in await upstream.commands()] == [1, 2]
    assert await upstream.pending() == 0


async def test_a_redis_that_came_back_empty_is_served_again(upstream, worker) -> None:
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
        await upstream.bus.flushall()
        await upstream.step(2)
        await upstream.decided(1)
    assert [c.global_step for c in await upstream.commands()] == [2]


async def test_runs_of_every_partition_are_served(upstream, worker) -> None:
    partitions = 3
    run_ids = [f"run{number}" for number in range(8)]
    assert {partition_of(run_id, partitions) for run_id in run_ids} == set(range(partitions))
    split = upstream.settings.model_copy(update={"partitions": partitions})
    for run_id in run_ids:
        packet = SystemStatePacket(run_id=run_id, packet_id=f"{run_id}-1", global_step=1, timestamp_ns=1)
        key = split.key(Stream.STATE, partition_of(run_id, partitions))
        await upstream.bus.xadd(key, encode_entry(packet, split.keyring))
    async with worker(partitions=partitions):
        await upstream.decided(len(run_ids))
    assert sorted(command.run_id for command in await upstream.commands()) == run_ids
