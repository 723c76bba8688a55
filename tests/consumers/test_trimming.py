"""Input streams are kept short, never at the cost of what some group has not settled."""

from __future__ import annotations

import pytest

from consumers.trimming import StreamTrimmer

KEY = "state"


async def publish(bus, count: int) -> list[bytes]:
    return [await bus.xadd(KEY, {"x": "1"}) for _ in range(count)]


async def read(bus, count: int, group: str = "g") -> list[bytes]:
    reply = await bus.xreadgroup(group, "c", {KEY: ">"}, count=count)
    entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
    return [entry_id for entry_id, _ in entries]


async def held(bus) -> list[bytes]:
    return [entry_id for entry_id, _ in await bus.xrange(KEY)]


@pytest.fixture
async def group(bus) -> None:
    """The group ``g`` on the stream."""
    await bus.xgroup_create(KEY, "g", id="0", mkstream=True)


async def test_settled_entries_beyond_the_kept_ones_leave(bus, group) -> None:
    trimmer = StreamTrimmer(bus, KEY, keep=3)
    ids = []
    for _ in range(10):
        ids += await publish(bus, 1)
        await bus.xack(KEY, "g", *await read(bus, 1))
        await trimmer.trim()
    assert await held(bus) == ids[-3:]
    assert (trimmer.statistics().trimmed, trimmer.statistics().length) == (7, 3)


async def test_what_is_pending_stays_with_all_that_follows_it(bus, group) -> None:
    trimmer = StreamTrimmer(bus, KEY, keep=1)
    ids = await publish(bus, 6)
    read_ids = await read(bus, 6)
    await bus.xack(KEY, "g", *read_ids[:2])  # the third is still being worked on
    await trimmer.trim()
    ids += await publish(bus, 3)
    await trimmer.trim()
    assert await held(bus) == ids[2:]
    await bus.xack(KEY, "g", *read_ids[2:], *await read(bus, 3))
    await trimmer.trim()
    assert ids[5] not in await held(bus)  # once settled it leaves too


async def test_what_is_unread_stays(bus, group) -> None:
    trimmer = StreamTrimmer(bus, KEY, keep=1)
    ids = await publish(bus, 4)
    await bus.xack(KEY, "g", *await read(bus, 2))
    for _ in range(3):
        await trimmer.trim()
        ids += await publish(bus, 2)
    assert await held(bus) == ids[1:]  # from the last one read on


async def test_the_slowest_group_counts(bus, group) -> None:
    await bus.xgroup_create(KEY, "slow", id="0")
    trimmer = StreamTrimmer(bus, KEY, keep=1)
    ids = await publish(bus, 4)
    for _ in range(2):
        await bus.xack(KEY, "g", *await read(bus, 10))
        await trimmer.trim()
        ids += await publish(bus, 4)
    assert await held(bus) == ids


async def test_a_stream_that_nobody_reads_or_that_does_not_exist_is_left_alone(bus) -> None:
    trimmer = StreamTrimmer(bus, KEY, keep=1)
    assert await trimmer.trim() == 0
    ids = await publish(bus, 3)
    await trimmer.trim()
    ids += await publish(bus, 3)
    assert await trimmer.trim() == 0
    assert await held(bus) == ids


async def test_a_redis_that_came_back_empty_starts_the_count_again(bus, group) -> None:
    trimmer = StreamTrimmer(bus, KEY, keep=3)
    await publish(bus, 10)
    await trimmer.trim()
    await bus.flushall()
    await bus.xgroup_create(KEY, "g", id="0", mkstream=True)
    ids = await publish(bus, 3)
    await bus.xack(KEY, "g", *await read(bus, 3))
    for _ in range(2):
        await trimmer.trim()
    assert await held(bus) == ids
