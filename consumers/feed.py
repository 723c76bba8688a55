"""Table feeds: streams that every worker reads whole, from their beginning (blueprints, safety sheets).

They fill tables that later steps read. A consumer group would share them out among the workers, so each worker
follows them by position; reading an entry twice is harmless because the newest of each blueprint wins.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from redis.asyncio import Redis

from consumers.delivery import Delivery, deliveries
from consumers.group import entries_by_key
from schemas.catalogue import Stream

FIRST_ID = "0-0"


class TableFeed:
    """Follows some streams from their beginning.

    Args:
        client: connection for this reader alone; its socket timeout must exceed ``block_ms``.
        streams: Redis key -> role.
        count: most entries per read and stream. block_ms: longest wait of :meth:`follow`.
    """

    def __init__(
        self,
        client: Redis,
        streams: Mapping[str, Stream],
        *,
        count: int,
        block_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._streams = dict(streams)
        self._positions = dict.fromkeys(self._streams, FIRST_ID)
        self._count = count
        self._block_ms = block_ms
        self._clock = clock

    async def poll(self) -> list[Delivery]:
        """Return the entries that are there already, without waiting; empty when all was read."""
        return await self._read(None)

    async def follow(self) -> list[Delivery]:
        """Return the next entries; empty when none came within ``block_ms``."""
        return await self._read(self._block_ms)

    async def _read(self, block_ms: int | None) -> list[Delivery]:
        positions: dict[Any, Any] = dict(self._positions)
        reply = await cast("Awaitable[Any]", self._client.xread(positions, count=self._count, block=block_ms))
        now = self._clock()
        found = [
            delivery
            for key, entries in entries_by_key(reply)
            for delivery in deliveries(self._streams[key], key, entries, now)
        ]
        for delivery in found:
            self._positions[delivery.key] = delivery.entry_id
        return found
