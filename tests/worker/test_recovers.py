"""What a worker does about a Redis that forgets, entries that kill workers, and workers that come and go."""

from __future__ import annotations

from contextlib import AsyncExitStack

from consumers.lease import lease_key
from schemas.catalogue import Stream
from tamiyo_stream.runs.snapshot import decode_snapshot

RUN_KEY = "tamiyo:run:{0}:run"


async def refusals(upstream) -> list[str]:
    return [event.description for packet in await upstream.telemetry() for event in packet.events]


async def test_a_step_that_was_decided_is_stale_also_in_a_redis_that_came_back_empty(upstream, worker) -> None:
    async with worker():
        for step in (1, 2, 3):
            await upstream.step(step)
            await upstream.decided(step)
        await upstream.bus.flushall()
        await upstream.step(3)  # as a publisher that resends what it is not sure of
        await upstream.step(4)
        (command,) = await upstream.decided(1)

        async def refused() -> bool:
            return "state_stale" in await refusals(upstream)

        await upstream.until(refused, "the repeated step is refused on the record")
    assert command.global_step == 4
    saved = decode_snapshot(await upstream.bus.hget(RUN_KEY, "state"))
    assert (saved.last_step, saved.counters["decided"]) == (4, 4)


async def test_an_emptied_redis_is_given_the_states_back_before_the_next_step(upstream, worker) -> None:
    async with worker(lease_ttl_ms=600):
        await upstream.step(7)
        await upstream.decided(1)
        before = await upstream.bus.hget(RUN_KEY, "state")
        await upstream.bus.flushall()

        async def saved_again() -> bool:
            return await upstream.bus.hget(RUN_KEY, "state") == before

        await upstream.until(saved_again, "the state is back")
    assert await upstream.bus.ttl(RUN_KEY) > 0


async def test_a_redis_that_came_back_older_than_it_was_does_not_set_a_run_back(upstream, worker) -> None:
    async with worker(lease_ttl_ms=600):
        await upstream.step(1)
        await upstream.decided(1)
        older = await upstream.bus.hgetall(RUN_KEY)
        await upstream.step(2)
        await upstream.decided(2)
        await upstream.bus.hset(RUN_KEY, mapping=older)
        await upstream.bus.delete(lease_key("tamiyo", 0))  # the lease is taken anew, the state read again
        await upstream.bus.set("tamiyo:fence:{0}", "")
        await upstream.step(2)
        await upstream.step(3)
        await upstream.decided(3)
    assert [command.global_step for command in await upstream.commands()] == [1, 2, 3]


async def test_an_entry_that_no_worker_lived_to_settle_goes_to_the_dead_letter_with_its_count(
    upstream, worker
) -> None:
    key, group = upstream.settings.key(Stream.STATE), upstream.settings.group
    entry_id = await upstream.step(1)
    await upstream.bus.xgroup_create(key, group, id="0")
    await upstream.bus.xreadgroup(group, "dead", {key: ">"})
    await upstream.bus.xclaim(key, group, "dead", 0, [entry_id], retrycount=3)
    await upstream.step(2, run_id="other")
    async with worker(max_deliveries=3):
        (command,) = await upstream.decided(1)

        async def refused() -> object:
            return await upstream.dead_letters()

        await upstream.until(refused, "the entry is in the dead letter")
    (letter,) = await upstream.dead_letters()
    assert command.run_id == "other"
    assert letter[b"dead_letter_reason"] == b"delivery_cap"
    assert letter[b"dead_letter_deliveries"] == b"4"
    assert letter[b"type"] == b"SystemStatePacket"
    assert await upstream.pending() == 0


async def test_an_entry_with_attempts_left_is_decided(upstream, worker) -> None:
    key, group = upstream.settings.key(Stream.STATE), upstream.settings.group
    entry_id = await upstream.step(1)
    await upstream.bus.xgroup_create(key, group, id="0")
    await upstream.bus.xreadgroup(group, "dead", {key: ">"})
    await upstream.bus.xclaim(key, group, "dead", 0, [entry_id], retrycount=2)
    async with worker(max_deliveries=3):
        await upstream.decided(1)
    assert await upstream.dead_letters() == []


async def test_partitions_are_shared_with_a_worker_that_joins_and_taken_back_when_it_leaves(
    upstream, worker
) -> None:
    async def owners() -> list[bytes | None]:
        return sorted(await upstream.bus.mget([lease_key("tamiyo", n) for n in range(4)]), key=str)

    async def held_by(*expected: bytes) -> None:
        async def so() -> bool:
            return await owners() == sorted(expected, key=str)

        await upstream.until(so, f"the partitions are held by {expected}")

    options = {"partitions": 4, "lease_ttl_ms": 600}
    async with worker(worker_id="w1", **options):
        await held_by(b"w1", b"w1", b"w1", b"w1")
        async with AsyncExitStack() as joined:
            await joined.enter_async_context(worker(worker_id="w2", **options))
            await held_by(b"w1", b"w1", b"w2", b"w2")
        await held_by(b"w1", b"w1", b"w1", b"w1")


async def test_of_a_long_backlog_no_more_is_claimed_than_can_be_worked_on(upstream, worker) -> None:
    claim_count = 4
    await upstream.bus.xgroup_create(
        upstream.settings.key(Stream.STATE), upstream.settings.group, id="0", mkstream=True
    )
    for step in range(1, 201):
        await upstream.step(step)
    async with worker(claim_count=claim_count):

        async def answered() -> bool:
            assert await upstream.pending() < 3 * claim_count
            return sum(1 + len(c.superseded_packet_ids) for c in await upstream.commands()) == 200

        await upstream.until(answered, "every step is answered")
    assert (await upstream.commands())[-1].global_step == 200
