"""Reads a run from the bus into a recording: its states and seed exports, what all runs share, its commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.kasmina import SeedExport
from schemas.partitions import partition_of
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.replay.recording import SHARED, Header, RecordedEntry, Recording, deciding_settings, is_input
from tamiyo_stream.runs.snapshot import SnapshotUnreadable, decode_snapshot
from tamiyo_stream.settings import Settings

PAGE = 500
FIRST, LAST = "-", "+"


class RunNotFound(LookupError):
    """The bus holds no state packet of the run, or none that a command answers."""


def record_run(
    client: redis.Redis, settings: Settings, run_id: str, *, from_id: str = "", to_id: str = ""
) -> Recording:
    """Return the recording of ``run_id``.

    The vocabularies are read from ``var_dir`` as the worker saved them last: record a run that has ended, or wait
    for a flush. Entries that a worker refuses (unsigned, damaged) decided nothing and are left out.

    ``from_id`` and ``to_id`` are Redis ids that bound the run's states and seed exports; the commands are those
    that answer these states. A recording that begins in the middle is replayed from an empty run state.

    Raises:
        RunNotFound: nothing to record.
        RegistryCorrupt: a vocabulary in ``var_dir`` is unreadable.
        redis.RedisError: the bus is away, or an id is none.
    """
    partition = partition_of(run_id, settings.partitions)
    mine = [
        (recorded, message)
        for recorded, message in _inputs(client, settings, partition, from_id or FIRST, to_id or LAST)
        if message.run_id == run_id
    ]
    packets = {message.packet_id for _, message in mine if isinstance(message, SystemStatePacket)}
    everything = _Reader(client, settings.keyring, FIRST, LAST)
    commands = [
        recorded
        for recorded, message in everything.of(Stream.COMMANDS, settings.key(Stream.COMMANDS))
        if isinstance(message, AdaptationCommand) and message.run_id == run_id and message.packet_id in packets
    ]
    if not packets or not commands:
        missing = settings.key(Stream.COMMANDS) if packets else settings.key(Stream.STATE, partition)
        raise RunNotFound(f"{missing} holds nothing of run {run_id!r}; check --run, --from, --to and the keys")
    header = Header(
        run_id=run_id,
        settings=deciding_settings(settings),
        registries=Registries(settings.var_dir / "registries").snapshots(),
        from_id=from_id,
        to_id=to_id,
        decided=_decided(client, settings, run_id, partition),
    )
    shared = _shared(client, settings, until=commands[-1].entry_id)
    return Recording(header, [*(recorded for recorded, _ in mine), *shared, *commands])


def _inputs(
    client: redis.Redis, settings: Settings, partition: int, start: str, end: str
) -> Iterator[tuple[RecordedEntry, SystemStatePacket | SeedExport]]:
    read = _Reader(client, settings.keyring, start, end)
    for stream in (Stream.STATE, Stream.SEEDS):
        for recorded, message in read.of(stream, settings.key(stream, partition)):
            if isinstance(message, SystemStatePacket | SeedExport):
                yield recorded, message


def _shared(client: redis.Redis, settings: Settings, *, until: str) -> list[RecordedEntry]:
    read = _Reader(client, settings.keyring, FIRST, until)
    return [
        recorded
        for stream in SHARED
        for recorded, message in read.of(stream, settings.key(stream))
        if is_input(message, stream)
    ]


def _decided(client: redis.Redis, settings: Settings, run_id: str, partition: int) -> int | None:
    """Return how many steps the run's saved state counts as decided."""
    key = f"{settings.key_prefix}:run:{{{partition}}}:{run_id}"
    payload: Any = client.hget(key, "state")
    try:
        return None if payload is None else decode_snapshot(payload).counters.get("decided", 0)
    except SnapshotUnreadable:
        return None


class _Reader:
    """Pages through streams between two ids."""

    def __init__(self, client: redis.Redis, keyring: Keyring | None, start: str, end: str) -> None:
        self._client, self._keyring = client, keyring
        self._start, self._end = start, end

    def of(self, stream: Stream, key: str) -> Iterator[tuple[RecordedEntry, Message]]:
        start = self._start
        while True:
            page: Any = self._client.xrange(key, min=start, max=self._end, count=PAGE)
            for entry_id, fields in page:
                try:
                    entry = decode_entry(fields, self._keyring, stream=stream)
                except EntryError:
                    continue
                yield RecordedEntry(stream, entry_id.decode(), fields), entry.message
            if len(page) < PAGE:
                return
            start = f"({page[-1][0].decode()}"
