"""The pending list of one stream and group: who holds which entry, how often it was handed out, taking it over.

XAUTOCLAIM and re-reading one's own history count as deliveries whatever their reason, also when only the reply was
lost. Here the count has one meaning, an attempt to handle the entry: entries change hands by XCLAIM with JUSTID,
which does not count, and :meth:`PendingList.count_attempts` sets the count to a value, so that repeating it after
a lost reply changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

FIRST_ID = "0"
LAST_ID = "+"


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """One entry that was handed out and not acknowledged, ``attempts`` times so far."""

    entry_id: str
    consumer: str
    attempts: int


class PendingList:
    """What is pending in ``group`` on the stream ``key``.

    Every method raises ``redis.exceptions.RedisError`` where Redis is away and may be repeated then.
    """

    def __init__(self, client: Redis, key: str, group: str) -> None:
        self._client = client
        self.key = key
        self._group = group

    async def page(self, after: str, count: int, *, consumer: str = "", idle_ms: int = 0) -> list[PendingEntry]:
        """Return up to ``count`` entries behind the id ``after``, oldest first.

        Given a ``consumer``, only what that one holds; given ``idle_ms``, only what was handed out at least that
        long ago.
        """
        start: Any = after if after == FIRST_ID else f"({after}"
        rows: Any = await self._client.xpending_range(
            self.key, self._group, start, LAST_ID, count, consumer or None, idle_ms or None
        )
        return [
            PendingEntry(row["message_id"].decode(), row["consumer"].decode(), row["times_delivered"])
            for row in rows
        ]

    async def take(self, entry_ids: Sequence[str], consumer: str, *, idle_ms: int) -> frozenset[str]:
        """Give those of ``entry_ids`` that are still idle for ``idle_ms`` to ``consumer``; return which.

        The check and the change are one command: of two that try, one gets the entry. From 7.0 on Redis drops an
        entry from the list here whose content was trimmed.
        """
        if not entry_ids:
            return frozenset()
        taken: Any = await self._client.xclaim(
            self.key, self._group, consumer, idle_ms, list(entry_ids), justid=True
        )
        return frozenset(entry_id.decode() for entry_id in taken)

    async def fields(self, entry_ids: Iterable[str]) -> dict[str, Mapping[bytes, bytes]]:
        """Return the fields of the entries that the stream still holds, by id, in one round trip."""
        wanted = list(entry_ids)
        async with self._client.pipeline(transaction=False) as pipe:
            for entry_id in wanted:
                pipe.xrange(self.key, entry_id, entry_id)
            replies: list[Any] = await pipe.execute()
        return {entry_id: dict(reply[0][1]) for entry_id, reply in zip(wanted, replies, strict=True) if reply}

    async def count_attempts(self, attempts: Mapping[str, int], consumer: str) -> None:
        """Set how often each entry was handed out; one round trip."""
        by_count: dict[int, list[str]] = {}
        for entry_id, count in attempts.items():
            by_count.setdefault(count, []).append(entry_id)
        async with self._client.pipeline(transaction=False) as pipe:
            for count, entry_ids in by_count.items():
                ids: list[Any] = list(entry_ids)
                pipe.xclaim(self.key, self._group, consumer, 0, ids, retrycount=count, justid=True)
            await pipe.execute()

    async def reap(self, *, idle_ms: int, survivor: str) -> tuple[str, ...]:
        """Remove consumers that were not heard of for ``idle_ms`` and hold nothing; return their names.

        Deleting a consumer forgets what it holds. So the deletion reads its list in the same transaction: what it
        was handed in between goes to ``survivor``.
        """
        reaped = []
        for info in await self._client.xinfo_consumers(self.key, self._group):
            name = info["name"].decode()
            if info["pending"] or info["idle"] < idle_ms or name == survivor:
                continue
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.xpending_range(self.key, self._group, "-", LAST_ID, 1024, name)
                pipe.xgroup_delconsumer(self.key, self._group, name)
                held, _ = await pipe.execute()
            if held:
                ids: list[Any] = [row["message_id"] for row in held]
                await self._client.xclaim(self.key, self._group, survivor, 0, ids, force=True, justid=True)
            reaped.append(name)
        return tuple(reaped)
