"""Table feeds: every worker reads everything, from the beginning."""

from __future__ import annotations

from consumers.feed import TableFeed
from schemas.catalogue import Stream

STREAMS = {"a": Stream.BLUEPRINTS, "b": Stream.SAFETY}


async def test_a_feed_reads_both_streams_from_their_beginning_and_then_only_what_is_new(bus) -> None:
    await bus.xadd("a", {"x": "1"})
    await bus.xadd("b", {"x": "2"})
    feed = TableFeed(bus, STREAMS, count=10, block_ms=1)
    assert {(d.stream, d.fields[b"x"]) for d in await feed.poll()} == {
        (Stream.BLUEPRINTS, b"1"),
        (Stream.SAFETY, b"2"),
    }
    assert await feed.poll() == []
    await bus.xadd("a", {"x": "3"})
    assert [d.fields[b"x"] for d in await feed.follow()] == [b"3"]


async def test_two_feeds_do_not_share_entries_out(bus) -> None:
    await bus.xadd("a", {"x": "1"})
    first, second = (TableFeed(bus, STREAMS, count=10, block_ms=1) for _ in range(2))
    assert len(await first.poll()) == len(await second.poll()) == 1


async def test_streams_that_do_not_exist_yet_give_nothing(bus) -> None:
    assert await TableFeed(bus, STREAMS, count=10, block_ms=1).follow() == []
