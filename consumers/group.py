"""The consumer-group reader of the ordered inputs (design §10).

One claim climbs the recovery ladder: what this consumer holds and has not settled, then what other consumers left
pending, then new entries. It has its own connection: a blocking read must not hold up a commit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from consumers.delivery import Delivery, RawEntry, deliveries
from consumers.pending import FIRST_ID, PendingEntry, PendingList
from schemas.catalogue import Stream

#: Entries are handed out alone from this many attempts before the limit on: two lone ones tell the culprit from
#: those that were only in its company.
LONE_ATTEMPTS = 2
#: Searches for what others left come at random between these shares of ``min_idle_ms``: out of step with others.
SEARCH_INTERVAL = (0.4, 0.6)


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Entries handed out so far, by rung of the ladder, groups re-created, and consumers removed."""

    own_pending: int
    taken_over: int
    new: int
    groups_healed: int
    consumers_reaped: int


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a reader takes part in its group.

    Attributes:
        group: consumer group. consumer: name of this consumer, unique per process.
        count: most entries per claim and stream. block_ms: longest wait for new entries.
        min_idle_ms: entries of other consumers are taken over after this time without acknowledgement.
        max_deliveries: attempts that an entry gets; one more is handed out only to be refused.
        reap_idle_ms: consumers not heard of for this time and without entries are removed.
    """

    group: str
    consumer: str
    count: int = 64
    block_ms: int = 200
    min_idle_ms: int = 5_000
    max_deliveries: int = 5
    reap_idle_ms: int = 3_600_000


class ConsumerGroup:
    """Reads some streams as one consumer of one group.

    Args:
        client: connection for this reader alone; its socket timeout must exceed ``options.block_ms``.
        streams: Redis key -> role.
        clock: monotonic seconds. jitter: (low, high) -> a number between, for the pace of searches.
    """

    def __init__(
        self,
        client: Redis,
        streams: Mapping[str, Stream],
        options: GroupOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = client
        self._streams = dict(streams)
        self._options = options
        self._clock = clock
        self._jitter = jitter
        self._pending = {key: PendingList(client, key, options.group) for key in self._streams}
        self._own_cursor: dict[str, str] = {}
        self._search_cursor: dict[str, str] = {}
        self._search_idle_ms = options.min_idle_ms
        self._next_search = 0.0
        self.rewind()
        self._positions: dict[str, str] = {}
        self._counting: dict[tuple[str, str], int] = {}
        self._trimmed: list[Delivery] = []
        self._counts = dict.fromkeys(GroupStatistics.__dataclass_fields__, 0)

    async def claim(self, in_work: Collection[tuple[str, str]] = ()) -> list[Delivery]:
        """Return the next entries, in stream order per stream; empty when none came within ``block_ms``.

        Args:
            in_work: (key, entry id) of what the caller is handling already: not handed out again.

        Raises:
            redis.exceptions.RedisError: Redis is away; call again later, nothing is lost.
        """
        try:
            found = await self._own(in_work)
            if not found and await self._take_over():
                found = self._trimmed + await self._own(in_work)
                self._trimmed = []
            return found or await self._new(in_work)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._create_groups()
            return []

    def rewind(self) -> None:
        """Start again with this consumer's own pending entries: after an outage a reply may have been lost."""
        self._own_cursor = dict.fromkeys(self._streams, FIRST_ID)

    def adopt(self) -> None:
        """Take over at once what any other consumer holds, however recent. Only for the owner of the lease.

        The fence keeps the others from settling it; waiting until it is idle would gain nothing.
        """
        self.rewind()
        self._search_cursor = dict.fromkeys(self._streams, FIRST_ID)
        self._search_idle_ms = 0
        self._next_search = 0.0

    async def times_delivered(self, key: str, entry_id: str) -> int:
        """Return how often a pending entry was handed out, to whomever; 0 where it is not pending.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        found: Any = await self._client.xpending_range(key, self._options.group, entry_id, entry_id, 1)
        return int(found[0]["times_delivered"]) if found else 0

    async def reap(self) -> tuple[str, ...]:
        """Remove consumers that are gone and hold nothing; return their names.

        Raises:
            redis.exceptions.RedisError: Redis is away, or the group does not exist yet.
        """
        options, names = self._options, set[str]()
        for pending in self._pending.values():
            names |= set(await pending.reap(idle_ms=options.reap_idle_ms, survivor=options.consumer))
        self._counts["consumers_reaped"] += len(names)
        if names:
            self.rewind()  # what one of them was given at the last moment is ours now
        return tuple(sorted(names))

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
        to it was trimmed: either way all that the stream holds is new. Nor does the position count while something
        before it may be pending that nobody is handling: the pending list vanished with the group. What was
        settled before is read again then, and refused as stale.
        """
        position = self._positions.get(key)
        if position is None or key in self._own_cursor or key in self._search_cursor:
            return FIRST_ID
        if not await self._client.xrange(key, position, position, count=1):
            return FIRST_ID
        return position

    async def _own(self, in_work: Collection[tuple[str, str]]) -> list[Delivery]:
        """Return what this consumer holds and nobody is handling; nothing once all of it was seen."""
        if not self._own_cursor:
            return []
        in_work = frozenset(in_work)  # as it is now: what is settled meanwhile may still be in a reply
        found = list[Delivery]()
        for key, cursor in list(self._own_cursor.items()):
            page = await self._pending[key].page(cursor, self._options.count, consumer=self._options.consumer)
            waiting = [entry for entry in page if (key, entry.entry_id) not in in_work]
            chosen = self._together(waiting)
            found += await self._hand_out_again(key, chosen)
            if len(chosen) < len(waiting):
                self._own_cursor[key] = chosen[-1].entry_id
                break  # the next one is for itself
            if len(page) < self._options.count:
                del self._own_cursor[key]
            else:
                self._own_cursor[key] = page[-1].entry_id
            if chosen and self._is_suspect(chosen[-1]):
                break
        self._counts["own_pending"] += len(found)
        return found or await self._own(in_work)

    def _together(self, waiting: list[PendingEntry]) -> list[PendingEntry]:
        """Return the entries at the front of ``waiting`` that may be handled together: a suspect only alone."""
        for position, entry in enumerate(waiting):
            if self._is_suspect(entry):
                return waiting[: max(position, 1)]
        return waiting

    def _is_suspect(self, entry: PendingEntry) -> bool:
        return entry.attempts > 1 and entry.attempts >= self._options.max_deliveries - LONE_ATTEMPTS

    async def _hand_out_again(self, key: str, entries: list[PendingEntry]) -> list[Delivery]:
        if not entries:
            return []
        pending = self._pending[key]
        fields = await pending.fields(entry.entry_id for entry in entries)
        attempts = {
            entry.entry_id: self._counting.setdefault((key, entry.entry_id), entry.attempts + 1)
            for entry in entries
        }
        await pending.count_attempts(attempts, self._options.consumer)
        for entry in entries:
            del self._counting[key, entry.entry_id]
        now = self._clock()
        return [
            Delivery(
                stream=self._streams[key],
                key=key,
                entry_id=entry.entry_id,
                fields=fields.get(entry.entry_id, {}),
                claimed_at=now,
                redelivered=True,
                attempts=attempts[entry.entry_id],
                alone=self._is_suspect(entry),
            )
            for entry in entries
        ]

    async def _take_over(self) -> bool:
        """Make ours what others left, a page per stream at a time; return whether there was any."""
        now, options, taken = self._clock(), self._options, 0
        if now < self._next_search:
            return False
        if not self._search_cursor:
            self._search_cursor = dict.fromkeys(self._streams, FIRST_ID)
        for key, cursor in list(self._search_cursor.items()):
            page = await self._pending[key].page(cursor, options.count, idle_ms=self._search_idle_ms)
            others = [entry for entry in page if entry.consumer != options.consumer]
            ids = [entry.entry_id for entry in others]
            got = await self._pending[key].take(ids, options.consumer, idle_ms=self._search_idle_ms)
            if got:
                taken += len(got)
                self._own_cursor[key] = FIRST_ID
            self._trimmed += await self._gone(key, [entry for entry in others if entry.entry_id not in got])
            if len(page) < options.count:
                del self._search_cursor[key]
            else:
                self._search_cursor[key] = page[-1].entry_id
        if not self._search_cursor:
            self._search_idle_ms = options.min_idle_ms
            self._next_search = now + self._jitter(*SEARCH_INTERVAL) * options.min_idle_ms / 1000
        self._counts["taken_over"] += taken
        return taken > 0 or bool(self._trimmed)

    async def _gone(self, key: str, missed: list[PendingEntry]) -> list[Delivery]:
        """Return those of the entries that could not be taken whose content was trimmed: lost, to be recorded."""
        if not missed:
            return []
        held = await self._pending[key].fields(entry.entry_id for entry in missed)
        now, stream = self._clock(), self._streams[key]
        return [
            Delivery(stream, key, entry.entry_id, {}, now, redelivered=True, attempts=entry.attempts)
            for entry in missed
            if entry.entry_id not in held
        ]

    async def _new(self, in_work: Collection[tuple[str, str]]) -> list[Delivery]:
        options = self._options
        wanted: dict[Any, Any] = dict.fromkeys(self._streams, ">")
        block_ms = None if self._search_cursor else options.block_ms
        reply: Any = await self._client.xreadgroup(
            options.group, options.consumer, wanted, count=options.count, block=block_ms
        )
        now = self._clock()
        found = [
            delivery
            for name, entries in entries_by_key(reply)
            for delivery in deliveries(self._streams[name], name, entries, now)
        ]
        for delivery in found:
            self._positions[delivery.key] = delivery.entry_id
        self._counts["new"] += len(found)
        # A group that healed from an earlier id hands out anew what is being handled.
        return [delivery for delivery in found if (delivery.key, delivery.entry_id) not in in_work]


def entries_by_key(reply: Any) -> list[tuple[str, list[RawEntry]]]:
    """Return an XREAD or XREADGROUP reply as (key, entries) pairs, whichever protocol the connection speaks."""
    pairs = reply.items() if isinstance(reply, dict) else (reply or [])
    result = []
    for name, entries in pairs:
        # RESP3 wraps the entries of a key in one more list.
        flat = entries[0] if entries and isinstance(entries[0], list) else entries
        result.append((name.decode() if isinstance(name, bytes) else str(name), flat))
    return result
