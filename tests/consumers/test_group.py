"""The consumer-group reader: nothing is skipped, nothing is lost, groups heal."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from consumers.group import ConsumerGroup, GroupOptions
from consumers.pending import PendingList
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


async def test_a_pending_entry_that_was_trimmed_arrives_without_fields(bus, clock) -> None:
    await publish(bus, b"1")
    assert await claim_until_found(reader(bus, clock))
    await bus.xtrim(KEY, maxlen=0)
    found = await claim_until_found(reader(bus, clock, min_idle_ms=60_000))
    assert [delivery.fields for delivery in found] == [{}]


async def test_a_trimmed_entry_of_another_consumer_arrives_without_fields(bus, clock) -> None:
    """Redis 6.2 leaves it on the pending list (the real server here), 7 drops it while it is taken (the fake)."""
    ids = await publish(bus, b"1", b"2")
    assert await claim_until_found(reader(bus, clock, consumer="gone"))
    await bus.xtrim(KEY, maxlen=1, approximate=False)
    found = await claim_until_found(reader(bus, clock, consumer="b", min_idle_ms=0))
    assert [(delivery.entry_id, delivery.fields) for delivery in found] == [
        (ids[0], {}),
        (ids[1], {b"payload": b"2"}),
    ]


async def test_an_entry_that_somebody_else_took_first_is_not_reported_as_lost(bus, clock) -> None:
    (entry_id,) = await publish(bus, b"1")
    assert await claim_until_found(reader(bus, clock, consumer="gone"))
    slow = reader(bus, clock, consumer="b", min_idle_ms=0)
    assert not await PendingList(bus, KEY, "g").take([entry_id], "quick", idle_ms=60_000)  # not idle long enough
    assert await slow._gone(KEY, await PendingList(bus, KEY, "g").page("0", 10)) == []


async def test_what_is_in_work_is_not_handed_out_again_and_counts_no_attempt(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2")
    group = reader(bus, clock, min_idle_ms=60_000)
    assert await claim_until_found(group)
    group.rewind()
    found = await group.claim({(KEY, ids[0])})
    assert [(delivery.entry_id, delivery.attempts) for delivery in found] == [(ids[1], 2)]
    assert await group.times_delivered(KEY, ids[0]) == 1


async def test_takeovers_and_lost_replies_are_no_attempts(bus, clock) -> None:
    (entry_id,) = await publish(bus, b"1")
    assert await claim_until_found(reader(bus, clock, consumer="gone"))
    survivor = reader(bus, clock, consumer="b", min_idle_ms=0)
    pending = PendingList(bus, KEY, "g")
    for consumer in ("c", "d", "b"):  # changes hands
        assert await pending.take([entry_id], consumer, idle_ms=0) == {entry_id}
    for _ in range(3):  # the reply to the counting is lost, the command is sent again
        await pending.count_attempts({entry_id: 2}, "b")
    (delivery,) = await claim_until_found(survivor)
    assert delivery.attempts == 3


async def test_a_new_owner_takes_over_at_once_what_anybody_holds(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2", b"3")
    assert await claim_until_found(reader(bus, clock, consumer="before", count=2))
    owner = reader(bus, clock, consumer="b", min_idle_ms=60_000)
    owner.adopt()
    assert [delivery.entry_id for delivery in await claim_until_found(owner)] == ids[:2]
    assert [delivery.entry_id for delivery in await claim_until_found(owner)] == ids[2:]
    assert await claim_until_found(reader(bus, clock, consumer="c", min_idle_ms=60_000)) == []


async def test_a_long_list_of_others_is_gone_through_page_by_page(bus, clock) -> None:
    ids = await publish(bus, *(b"%d" % number for number in range(7)))
    assert len(await claim_until_found(reader(bus, clock, consumer="gone", count=7))) == 7
    owner = reader(bus, clock, consumer="b", count=2, min_idle_ms=60_000)
    owner.adopt()
    seen, in_work = [], set()
    for _ in range(12):
        for delivery in await owner.claim(in_work):
            seen.append(delivery.entry_id)
            in_work.add((KEY, delivery.entry_id))
    assert seen == ids


async def test_the_search_for_what_others_left_keeps_its_pace(bus, clock) -> None:
    searches = []
    group = reader(bus, clock, min_idle_ms=1_000)
    search = group._pending[KEY].page

    async def counted(*args, **options):
        searches.append(options)
        return await search(*args, **options)

    group._pending[KEY].page = counted  # type: ignore[method-assign]
    for _ in range(10):
        await group.claim()
    assert sum("idle_ms" in options for options in searches) <= 2  # once before, once after the group existed
    clock.now += 0.6
    for _ in range(10):
        await group.claim()
    assert sum("idle_ms" in options for options in searches) <= 3


async def test_an_entry_that_outlived_several_workers_is_handed_out_alone(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2", b"3")
    for number in range(1, 4):  # three workers die with all of it
        group = reader(bus, clock, consumer=f"dead{number}", min_idle_ms=0)
        assert len(await claim_until_found(group)) == 3
    last = reader(bus, clock, consumer="b", min_idle_ms=0)
    for entry_id in ids:
        (delivery,) = await claim_until_found(last)
        assert (delivery.entry_id, delivery.attempts, delivery.alone) == (entry_id, 4, True)
        await bus.xack(KEY, "g", entry_id)


async def test_attempts_go_beyond_the_limit_by_the_one_that_is_to_be_refused(bus, clock) -> None:
    await publish(bus, b"1")
    attempts = []
    for number in range(4):
        (delivery,) = await claim_until_found(
            reader(bus, clock, consumer=f"w{number}", min_idle_ms=0, max_deliveries=3)
        )
        attempts.append(delivery.attempts)
    assert attempts == [1, 2, 3, 4]


async def test_a_group_that_vanished_with_unsettled_entries_starts_from_the_beginning(bus, clock) -> None:
    ids = await publish(bus, b"1", b"2")
    group = reader(bus, clock, min_idle_ms=60_000)
    assert await claim_until_found(group)
    group.rewind()  # the lease was lost and regained; nobody is handling the two
    await bus.xgroup_destroy(KEY, "g")
    assert [delivery.entry_id for delivery in await claim_until_found(group)] == ids


async def test_consumers_that_are_gone_and_hold_nothing_are_removed(bus, clock) -> None:
    await publish(bus, b"1")
    for consumer in ("idle", "holder"):
        await claim_until_found(reader(bus, clock, consumer=consumer))
    await bus.xclaim(KEY, "g", "holder", 0, [(await bus.xrange(KEY))[0][0]])
    survivor = reader(bus, clock, consumer="b", min_idle_ms=60_000, reap_idle_ms=0)
    await survivor.claim()
    assert await survivor.reap() == ("idle",)
    assert {info["name"] for info in await bus.xinfo_consumers(KEY, "g")} >= {b"holder"}
    assert survivor.statistics().consumers_reaped == 1


async def test_what_a_removed_consumer_was_given_at_the_last_moment_is_kept(redis_url, clock) -> None:
    async with Redis.from_url(redis_url) as bus:
        ids = await publish(bus, b"1")
        sleeper = reader(bus, clock, consumer="sleeper")
        await bus.xgroup_create(KEY, "g", id="$")
        await bus.xgroup_createconsumer(KEY, "g", "sleeper")
        survivor = reader(bus, clock, consumer="b", min_idle_ms=60_000, reap_idle_ms=0)
        look = bus.xinfo_consumers

        async def and_it_wakes(key, group):
            seen = await look(key, group)
            await bus.xgroup_setid(key, group, "0")
            assert await sleeper.claim()
            return seen

        bus.xinfo_consumers = and_it_wakes  # type: ignore[method-assign]
        assert await survivor.reap() == ("sleeper",)
        assert [delivery.entry_id for delivery in await survivor.claim()] == ids


async def test_deliveries_of_a_pending_entry_are_counted(bus, clock) -> None:
    (entry_id,) = await publish(bus, b"1")
    group = reader(bus, clock)
    assert await claim_until_found(group)
    assert await group.times_delivered(KEY, entry_id) == 1
    await bus.xclaim(KEY, "g", "b", 0, [entry_id])
    assert await group.times_delivered(KEY, entry_id) == 2
    await bus.xack(KEY, "g", entry_id)
    assert await group.times_delivered(KEY, entry_id) == 0
