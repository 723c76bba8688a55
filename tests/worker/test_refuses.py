"""Bad input and broken stages: recorded, and the worker goes on."""

from __future__ import annotations

import msgpack
import pytest
from structlog.testing import capture_logs

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.enums import EmergencyLevel
from schemas.kasmina import SeedExport, SeedState
from schemas.signing import Keyring
from schemas.telemetry import EmergencySignal
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint

WRONG_KEY = Keyring({"k1": b"somebody else's secret"})


def a_packet(step: int = 1) -> SystemStatePacket:
    return SystemStatePacket(run_id="run", packet_id=f"run-{step}", global_step=step, timestamp_ns=1)


def bad_entries(keyring: Keyring) -> dict[str, dict[bytes, bytes]]:
    signal = EmergencySignal(level=EmergencyLevel.NOTICE, reason="r", origin="tolaria", triggered_at=1)
    good = encode_entry(a_packet(), keyring)
    return {
        "missing_signature": encode_entry(a_packet(), None),
        "invalid_signature": encode_entry(a_packet(), WRONG_KEY),
        "unknown_type": encode_entry(signal, keyring),
        "malformed_entry": {b"hello": b"world"},
        "unsupported_version": {**good, b"v": b"9"},
    }


@pytest.mark.parametrize(
    "reason", ["missing_signature", "invalid_signature", "unknown_type", "malformed_entry", "unsupported_version"]
)
async def test_a_bad_entry_goes_whole_to_the_dead_letter_and_the_next_step_is_decided(
    upstream, worker, reason
) -> None:
    bad = bad_entries(upstream.settings.keyring)[reason]
    async with worker():
        entry_id = await upstream.bus.xadd(upstream.settings.key(Stream.STATE), bad)
        await upstream.step(1)
        await upstream.decided(1)
    (letter,) = await upstream.dead_letters()
    assert letter[b"dead_letter_reason"] == reason.encode()
    assert letter[b"dead_letter_entry_id"] == entry_id
    assert letter[b"dead_letter_stream"] == b"oona.tolaria.state"
    assert letter[b"dead_letter_deliveries"] == b"1"
    assert {name: letter[name] for name in bad} == bad
    assert await upstream.pending() == 0


async def test_a_bad_blueprint_is_refused_once_whoever_sees_it_first(upstream, worker) -> None:
    key = upstream.settings.key(Stream.BLUEPRINTS)
    await upstream.bus.xadd(
        key, encode_entry(Blueprint(blueprint_id="m", blueprint_version="1", issued_at=1), None)
    )
    for worker_id in ("w1", "w2"):
        async with worker(worker_id=worker_id):
            await upstream.step(int(worker_id[1]))
            await upstream.decided(int(worker_id[1]))
    assert [letter[b"dead_letter_reason"] for letter in await upstream.dead_letters()] == [b"missing_signature"]


async def test_a_payload_with_the_wrong_type_names_field_and_value(upstream, worker) -> None:
    payload = msgpack.packb({"run_id": "run", "packet_id": "p", "global_step": "seven", "timestamp_ns": 1})
    unsigned = {b"type": b"SystemStatePacket", b"v": b"1", b"id": b"e1", b"payload": payload, b"kid": b"k1"}
    keyring = upstream.settings.keyring
    parts = [unsigned[name] for name in (b"type", b"v", b"id", b"kid", b"payload")]
    async with worker():
        await upstream.bus.xadd(
            upstream.settings.key(Stream.STATE), {**unsigned, b"signature": keyring.sign("k1", parts)}
        )

        async def refused() -> object:
            return await upstream.dead_letters()

        await upstream.until(refused, "the entry is in the dead letter")
    (letter,) = await upstream.dead_letters()
    assert letter[b"dead_letter_reason"] == b"invalid_payload"
    assert b"$.global_step" in letter[b"dead_letter_detail"]
    assert b"seven" in letter[b"dead_letter_detail"]


class BrokenEngine:
    """An engine whose every answer fails: a broken network cannot be had otherwise."""

    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def infer(self, _graphs):
        raise ArithmeticError("the network answers NaN")


async def test_a_network_that_fails_gives_a_pause_that_says_so(upstream, worker, engine) -> None:
    async with worker(engine=BrokenEngine(engine)):
        await upstream.step(1)
        (command,) = await upstream.decided(1)
    assert command.annotations["risk_reason"] == "inference_failed"
    assert command.target_seed_id == ""


async def test_a_damaged_saved_state_stops_only_its_run(upstream, worker) -> None:
    await upstream.bus.hset("tamiyo:run:{0}:damaged", mapping={"state": b"\xc1", "commit": b"x"})
    async with worker():
        await upstream.step(1, run_id="damaged")
        await upstream.step(1, run_id="healthy")
        await upstream.decided(1)

        async def refused() -> object:
            return await upstream.dead_letters()

        await upstream.until(refused, "the damaged run's step is in the dead letter")
    (letter,) = await upstream.dead_letters()
    assert letter[b"dead_letter_reason"] == b"internal_error"
    assert b"delete the key" in letter[b"dead_letter_detail"]
    assert [command.run_id for command in await upstream.commands()] == ["healthy"]


async def test_an_unwritable_var_directory_costs_no_decision(upstream, worker, tmp_path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the directory should be")
    seeds = [SeedState(seed_id="new to the registry")]
    with capture_logs() as lines:
        async with worker(var_dir=blocked / "var", flush_interval_s=0.01):
            await upstream.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=1, seeds=seeds))
            for step in range(1, 6):
                await upstream.step(step)
                await upstream.decided(step)
    failures = [line for line in lines if line["event"] == "registries_not_saved"]
    assert len(failures) == 1  # once, not at every attempt
    assert "make its directory writable" in failures[0]["detail"]


async def test_a_redis_that_refuses_writes_is_waited_for_and_nothing_is_lost(upstream, worker) -> None:
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
        await upstream.step(2)
        await upstream.bus.config_set("maxmemory", 1)  # as a full disk or memory: every write is refused
        try:
            await upstream.until(upstream.bus.ping, "Redis still answers reads")
        finally:
            await upstream.bus.config_set("maxmemory", 0)
        await upstream.step(3)

        async def settled() -> bool:
            return await upstream.pending() == 0 and (await upstream.commands())[-1].global_step == 3

        await upstream.until(settled, "all three steps are settled")
    commands = await upstream.commands()
    answered = [c.packet_id for c in commands] + [p for c in commands for p in c.superseded_packet_ids]
    assert sorted(answered) == ["run-1", "run-2", "run-3"]
