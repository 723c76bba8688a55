"""The hub's tasks: read what upstream reports, publish the consolidated view, read the state of the feeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from producers.commit import Commit, Committer, Output
from schemas.catalogue import Stream
from schemas.entry import decode_entry, encode_entry
from schemas.errors import EntryError
from schemas.partitions import ORDERED
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub.hub_state import FeedReading, HubState
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.priority import destinations
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.refusals import new_id

FEEDS_EVERY_S = 2.0
#: Redis before 7 does not tell a group's lag: no more entries than these are counted.
COUNTED_LAG = 1001
#: Streams whose state the panel shows.
WATCHED = (Stream.STATE, Stream.SEEDS, Stream.BLUEPRINTS, Stream.SAFETY, Stream.POLICY, Stream.TELEMETRY)

log = structlog.get_logger("tamiyo.telemetry")


class TelemetryDesk:
    """Between the hub and the bus.

    Args:
        reader: connection of its own, for reads that wait. client: for everything else.
        owns: whether this worker holds the partition of a run: only its owner publishes a run's consolidated view.
    """

    def __init__(
        self,
        settings: Settings,
        state: HubState,
        meters: Meters,
        reader: Redis,
        client: Redis,
        committer: Committer,
        owns: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._state = state
        self._meters = meters
        self._reader = reader
        self._client = client
        self._committer = committer
        self._owns = owns

    async def follow(self) -> None:
        """Take in what Tolaria and Kasmina report from now on, for ever."""
        key = self._settings.key(Stream.TELEMETRY)
        position: Any = await through_outages("find telemetry", partial(self._newest, key))
        while True:
            read = partial(self._reader.xread, {key: position}, count=256, block=self._settings.block_ms)
            reply: Any = await through_outages("read telemetry", read)
            for _, entries in reply or []:
                for entry_id, fields in entries:
                    position = entry_id
                    self._ingest(fields)

    async def publish_for_ever(self, interval_s: float) -> None:
        """Publish one consolidated packet per run and interval."""
        while True:
            await anyio.sleep(interval_s)
            for packet in self._state.consolidate(time.time_ns(), self._owns):
                await self._publish(packet)

    async def watch_feeds(self) -> None:
        """Read lag and age of every feed, for ever."""
        while True:
            readings = [
                await through_outages("read feeds", partial(self._reading, stream, partition))
                for stream in WATCHED
                for partition in (range(self._settings.partitions) if stream in ORDERED else (-1,))
            ]
            self._state.read_feeds(readings, time.time_ns())
            await anyio.sleep(FEEDS_EVERY_S)

    def _ingest(self, fields: Mapping[bytes, bytes]) -> None:
        try:
            message = decode_entry(fields, self._settings.keyring, stream=Stream.TELEMETRY).message
        except EntryError as error:
            log.info("telemetry_unusable", detail=str(error))
            return
        if isinstance(message, TelemetryPacket):
            self._state.aggregator.ingest(message, time.time_ns())

    async def _publish(self, packet: TelemetryPacket) -> None:
        settings, commit_id = self._settings, new_id()
        fields = encode_entry(packet, settings.keyring, event_id=commit_id)
        outputs = [
            Output(settings.key(stream), fields, settings.telemetry_maxlen) for stream in destinations(packet)
        ]
        commit = Commit(commit_id=commit_id, outputs=outputs)
        await through_outages("publish telemetry", lambda: self._committer.commit(commit))
        self._meters.sent(Stream.TELEMETRY.value)

    async def _newest(self, key: str) -> bytes | str:
        newest: Any = await self._client.xrevrange(key, count=1)
        return newest[0][0] if newest else "0-0"

    async def _reading(self, stream: Stream, partition: int) -> FeedReading:
        key = self._settings.key(stream, max(partition, 0))
        shown = partition if self._settings.partitions > 1 else -1
        try:
            info: Any = await self._client.xinfo_stream(key)
            groups: Any = await self._client.xinfo_groups(key) if stream in ORDERED else []
        except ResponseError:  # no such stream yet
            return FeedReading(stream.value, partition=shown)
        ours: Mapping[str, Any] = next((one for one in groups if one["name"] == self._settings.group.encode()), {})
        newest = info["last-generated-id"].decode().partition("-")[0] if info["length"] else None
        return FeedReading(
            stream.value,
            lag=await self._lag(key, ours),
            pending=ours.get("pending"),
            newest_ns=int(newest) * 1_000_000 if newest else None,
            length=info["length"],
            partition=shown,
        )

    async def _lag(self, key: str, group: Mapping[str, Any]) -> int | None:
        if not group or group.get("lag") is not None:
            return group.get("lag")
        behind = f"({group['last-delivered-id'].decode()}"
        waiting: Any = await self._client.xrange(key, min=behind, count=COUNTED_LAG)
        return len(waiting)
