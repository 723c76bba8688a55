"""The consumer-group reader of the ordered inputs (design §10).

One claim climbs the recovery ladder: what this consumer was given before and never acknowledged, then what
consumers that are gone left pending (XAUTOCLAIM), then new entries. It has its own connection: a blocking read
must not hold up a commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from consumers.delivery import Delivery, RawEntry, deliveries
from schemas.catalogue import Stream

#: A new group starts at the beginning: what was published before the worker first started is never lost.
FIRST_ID = "0"


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Entries handed out so far, by rung of the ladder, and groups that had to be re-created."""

    own_pending: int
    taken_over: int
    new: int
    groups_healed: int


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a reader takes part in its group.

    Attributes:
        group: consumer group. consumer: name of this consumer, unique per process.
        count: most entries per claim and stream. block_ms: longest wait for new entries.
        min_idle_ms: entries of other consumers are taken over after this time without acknowledgement.
    """

    group: str
    consumer: str
    count: int = 64
    block_ms: int = 200
    min_idle_ms: int = 5_000


class ConsumerGroup:
    """Reads some streams as one consumer of one group.

    Args:
        client: connection for this reader alone; its socket timeout must exceed ``options.block_ms``.
        streams: Redis key -> role.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: Redis,
        streams: Mapping[str, Stream],
        options: GroupOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._streams = dict(streams)
        self._options = options
        self._clock = clock
        self._own_cursor: dict[str, str] = {}
        self.rewind()
        self._positions: dict[str, str] = {}
        self._next_takeover = 0.0
        self._counts = {"own_pending": 0, "taken_over": 0, "new": 0, "groups_healed": 0}

    async def claim(self) -> list[Delivery]:
        """Return the next entries, in stream order per stream; empty when none came within ``block_ms``.

        Raises:
            redis.exceptions.RedisError: Redis is away; call again later, nothing is lost.
        """
        try:
            return await self._own_pending() or await self._take_over() or await self._new()
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._create_groups()
            return []

    def rewind(self) -> None:
        """Start again with this consumer's own pending entries: after an outage a reply may have been lost.

        What is still being worked on is handed out again too; the caller knows it by its entry id.
        """
        self._own_cursor = dict.fromkeys(self._streams, FIRST_ID)

    async def times_delivered(self, key: str, entry_id: str) -> int:
        """Return how often a pending entry was handed out, to whomever; 0 where it is not pending.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        found: Any = await self._client.xpending_range(key, self._options.group, entry_id, entry_id, 1)
        return int(found[0]["times_delivered"]) if found else 0

    def statistics(self) -> GroupStatistics:
        """Return the counts so far."""
        return GroupStatistics(**self._counts)

    async def _create_groups(self) -> None:
        for key in self._streams:
            start = await self._position_in(key)
            try:
                await self._client.xgroup_create(key, self._options.group, id=start, mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            else:
                self._counts["groups_healed"] += key in self._positions

    async def _position_in(self, key: str) -> str:
        """Return where a group that vanished goes on: behind what was read last, where that is still there.

        Where it is not, Redis came back empty (its ids may even start lower, after a clock step) or everything up
        to it was trimmed: either way all that the stream holds is new.
        """
        position = self._positions.get(key)
        if position is None or not await self._client.xrange(key, position, position, count=1):
            return FIRST_ID
        return position

    async def _own_pending(self) -> list[Delivery]:
        """Return what this consumer was given and never acknowledged; nothing once all of it was seen."""
        if not self._own_cursor:
            return []
        found = await self._read(self._own_cursor, block_ms=None, redelivered=True)
        seen = {delivery.key: delivery.entry_id for delivery in found}
        self._own_cursor = seen  # streams without a further entry are through
        self._counts["own_pending"] += len(found)
        return found or await self._own_pending()

    async def _take_over(self) -> list[Delivery]:
        now = self._clock()
        if now < self._next_takeover:
            return []
        options, found = self._options, list[Delivery]()
        for key, stream in self._streams.items():
            reply: Any = await self._client.xautoclaim(
                key, options.group, options.consumer, options.min_idle_ms, "0-0", count=options.count
            )
            found += deliveries(stream, key, reply[1], now, redelivered=True)
        if not found:
            # Looked at everything: nothing can become idle long enough before half of the limit has passed again.
            self._next_takeover = now + options.min_idle_ms / 2000
        self._counts["taken_over"] += len(found)
        return found

    async def _new(self) -> list[Delivery]:
        found = await self._read(dict.fromkeys(self._streams, ">"), block_ms=self._options.block_ms)
        for delivery in found:
            self._positions[delivery.key] = delivery.entry_id
        self._counts["new"] += len(found)
        return found

    async def _read(
        self, positions: Mapping[str, str], *, block_ms: int | None, redelivered: bool = False
    ) -> list[Delivery]:
        options, wanted = self._options, dict[Any, Any](positions)
        reply: Any = await self._client.xreadgroup(
            options.group, options.consumer, wanted, count=options.count, block=block_ms
        )
        now = self._clock()
        return [
            delivery
            for name, entries in entries_by_key(reply)
            for delivery in deliveries(self._streams[name], name, entries, now, redelivered=redelivered)
        ]


def entries_by_key(reply: Any) -> list[tuple[str, list[RawEntry]]]:
    """Return an XREAD or XREADGROUP reply as (key, entries) pairs, whichever protocol the connection speaks."""
    pairs = reply.items() if isinstance(reply, dict) else (reply or [])
    result = []
    for name, entries in pairs:
        # RESP3 wraps the entries of a key in one more list.
        flat = entries[0] if entries and isinstance(entries[0], list) else entries
        result.append((name.decode() if isinstance(name, bytes) else str(name), flat))
    return result
