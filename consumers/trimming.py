"""Trims input streams by policy: keeps the newest entries and everything that some group has not settled.

``MAXLEN`` on the publisher's side would cut what is pending or unread once readers fall behind; the reader alone
knows how far it is. Called by the partition's owner from time to time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

#: Marks kept of a stream: the finer they lie, the closer to ``keep`` it is trimmed.
MAX_MARKS = 256

EntryId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Mark:
    """``newest`` was the stream's newest entry when ``added`` entries had been seen in it."""

    newest: EntryId
    added: int


@dataclass(frozen=True, slots=True)
class TrimmerStatistics:
    """Entries removed so far, and how many the stream held at the last look."""

    trimmed: int
    length: int


class StreamTrimmer:
    """Keeps at least the ``keep`` newest entries of one stream and, whatever their number, the unsettled ones.

    It never reads the entries it counts: each call notes the stream's newest id and how many entries came so far,
    and a later call trims up to the note that lies ``keep`` entries back. So a stream is longer than ``keep`` by
    what arrives between two calls.
    """

    def __init__(self, client: Redis, key: str, *, keep: int) -> None:
        self._client = client
        self._key = key
        self._keep = keep
        self._marks: deque[_Mark] = deque(maxlen=MAX_MARKS)
        self._target: EntryId | None = None
        self._trimmed = 0
        self._length = 0

    async def trim(self) -> int:
        """Trim the stream as far as the policy allows; return how many entries left.

        Raises:
            redis.exceptions.RedisError: Redis is away; call again.
        """
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.xlen(self._key)
            pipe.xrevrange(self._key, count=1)
            length, newest = await pipe.execute()
        self._length = length
        if not newest:
            return 0
        mark = _Mark(_parse(newest[0][0]), self._trimmed + length)
        if self._marks and mark.added < self._marks[-1].added:
            self._marks.clear()  # Redis came back empty: ids and counts start again
            self._target = None
        self._marks.append(mark)
        self._aim(mark.added - self._keep)
        if self._target is None or (floor := await self._unsettled_from()) is None:
            return 0
        limit = min(self._target, floor)
        removed: int = await self._client.xtrim(self._key, minid=_text(limit), approximate=False)
        if limit == self._target:
            self._target = None  # done; the next mark sets the next one
        self._trimmed += removed
        self._length -= removed
        return removed

    def statistics(self) -> TrimmerStatistics:
        """Return the counts so far."""
        return TrimmerStatistics(self._trimmed, self._length)

    def _aim(self, added: int) -> None:
        """Set the target behind the newest mark that at most ``added`` entries had reached."""
        while self._marks and self._marks[0].added <= added:
            milliseconds, sequence = self._marks.popleft().newest
            self._target = (milliseconds, sequence + 1)

    async def _unsettled_from(self) -> EntryId | None:
        """Return the first id that some group still needs; None where nobody reads the stream yet."""
        floors = []
        for group in await self._client.xinfo_groups(self._key):
            read = _parse(group["last-delivered-id"])
            summary: Any = await self._client.xpending(self._key, group["name"]) if group["pending"] else None
            # Without pending entries the last one read stays: a group that vanishes goes on behind it.
            floors.append(min(read, _parse(summary["min"])) if summary and summary["min"] else read)
        return min(floors, default=None)


def _parse(entry_id: bytes) -> EntryId:
    milliseconds, _, sequence = entry_id.decode().partition("-")
    return int(milliseconds), int(sequence or 0)


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
