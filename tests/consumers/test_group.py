"""The consumer-group reader: nothing is skipped, nothing is lost, groups heal."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from consumers.group import ConsumerGroup, GroupOptions
from schemas.catalogue import Stream

KEY = "state"


class Clock:
    """Monotonic seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reader(bus, clock, consumer="a", **options) -> ConsumerGroup:
    chosen = {"block_ms": 1, "min_idle_ms": 1, **options}
    return ConsumerGroup(bus, {KEY: Stream.STATE}, GroupOptions("g", consumer, **chosen), clock=clock)


async def publish(bus, *payloads: bytes) -> list[str]:
    return [(await bus.xadd(KEY, {"payload": payload})).decode() for payload in payloads]


async def claim_until_found(group: ConsumerGroup, tries: int = 5):
    for _ in range(tries):
        if found := await group.claim():
            return found
    return []


async def test_entries_published_before_the_group_existed_are_delivered(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2")
    found = await claim_until_found(reader(bus, clock))
    assert [delivery.entry_id for delivery in found] == ids
    assert [delivery.fields for delivery in found] == [{b"payload": b"1"}, {b"payload": b"2"}]
    assert not any(delivery.redelivered for delivery in found)


async def test_a_claim_carries_the_monotonic_time_at_which_it_arrived(bus, clock) -> None:
    await publish(bus, b"1")
    clock.now = 123.5
    assert (await claim_until_found(reader(bus, clock)))[0].claimed_at == 123.5


async def test_a_restarted_consumer_gets_its_own_pending_entries_first(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2", b"3")
    assert await claim_until_found(reader(bus, clock, count=2))
    restarted = reader(bus, clock, min_idle_ms=60_000)
    own = await claim_until_found(restarted)
    assert [delivery.entry_id for delivery in own] == ids[:2]
    assert all(delivery.redelivered for delivery in own)
    assert [delivery.entry_id for delivery in await claim_until_found(restarted)] == ids[2:]


async def test_all_own_pending_entries_are_paged_through(bus, clock) -> None:
    ids = await publish(bus, *(b"%d" % number for number in range(5)))
    assert len(await claim_until_found(reader(bus, clock, count=5))) == 5
    restarted = reader(bus, clock, count=2, min_idle_ms=60_000)
    seen = [delivery.entry_id for _ in range(4) for delivery in await restarted.claim()]
    assert seen == ids


async def test_entries_of_a_consumer_that_is_gone_are_taken_over(bus, clock) -> None:
    ids = await publish(bus, b"1")
    assert await claim_until_found(reader(bus, clock, consumer="gone"))
    survivor = reader(bus, clock, consumer="b", min_idle_ms=0)
    taken = await claim_until_found(survivor)
    assert [(delivery.entry_id, delivery.redelivered) for delivery in taken] == [(ids[0], True)]
    assert survivor.statistics().taken_over == 1


async def test_entries_that_are_not_idle_long_enough_are_left_alone(bus, clock) -> None:
    await publish(bus, b"1")
    assert await claim_until_found(reader(bus, clock, consumer="busy"))
    assert await claim_until_found(reader(bus, clock, consumer="b", min_idle_ms=60_000)) == []


async def test_a_deleted_group_heals_behind_what_was_read_last(bus, clock) -> None:
    group = reader(bus, clock, min_idle_ms=60_000)
    await publish(bus, b"1")
    assert await claim_until_found(group)
    await bus.xgroup_destroy(KEY, "g")
    ids = await publish(bus, b"2")
    assert [delivery.entry_id for delivery in await claim_until_found(group)] == ids
    assert group.statistics().groups_healed == 1


async def test_a_redis_that_came_back_empty_is_read_again(bus, clock) -> None:
    group = reader(bus, clock, min_idle_ms=60_000)
    await publish(bus, b"1")
    assert await claim_until_found(group)
    await bus.flushall()
    await bus.xadd(KEY, {"payload": b"2"}, id="5-0")  # its clock is behind the old one's
    assert [delivery.entry_id for delivery in await claim_until_found(group)] == ["5-0"]


async def test_after_an_outage_unacknowledged_entries_are_handed_out_again(bus, clock) -> None:
    ids = await publish(bus, b"1")
    group = reader(bus, clock, min_idle_ms=60_000)
    assert await claim_until_found(group)
    group.rewind()
    assert [delivery.entry_id for delivery in await claim_until_found(group)] == ids


async def test_a_pending_entry_that_was_trimmed_arrives_without_fields(redis_url, clock) -> None:
    """Only the real server keeps a trimmed entry on the pending list."""
    async with Redis.from_url(redis_url) as bus:
        await publish(bus, b"1")
        assert await claim_until_found(reader(bus, clock))
        await bus.xtrim(KEY, maxlen=0)
        found = await claim_until_found(reader(bus, clock, min_idle_ms=60_000))
        assert [delivery.fields for delivery in found] == [{}]


async def test_deliveries_of_a_pending_entry_are_counted(bus, clock) -> None:
    (entry_id,) = await publish(bus, b"1")
    group = reader(bus, clock)
    assert await claim_until_found(group)
    assert await group.times_delivered(KEY, entry_id) == 1
    await bus.xclaim(KEY, "g", "b", 0, [entry_id])
    assert await group.times_delivered(KEY, entry_id) == 2
    await bus.xack(KEY, "g", entry_id)
    assert await group.times_delivered(KEY, entry_id) == 0
