"""The account of a scenario, from the streams alone: what was published, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.partitions import partition_of, stream_key
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.runs.snapshot import decode_snapshot
from tamiyo_stream.runs.state import RunState
from tests.chaos.upstream import KEYRING

GROUP = "tamiyo"
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the streams say.

    Attributes:
        published: packet id -> how many entries carry it. answers: packet id -> how many commands answer or
            supersede it. refused: packet ids that a telemetry event refuses. letters: source entry ids in the dead
            letter, each with its reason. unusable: ids of published entries that no reader can use.
        pending, unread: entries of the inputs that the group has not settled, or not read.
    """

    published: Counter[str]
    answers: Counter[str]
    decided: int
    refused: Counter[str]
    letters: Counter[tuple[str, str]]
    reasons: Counter[str]
    unusable: frozenset[tuple[str, str]]
    usable: dict[tuple[str, str], str]
    pending: int
    unread: int

    @property
    def lost(self) -> list[str]:
        """Packets without a command that answers or supersedes them, and without a refusal on the record."""
        dead = {self.usable[entry] for entry in self.letters if entry in self.usable}
        return sorted(self.published.keys() - self.answers.keys() - self.refused.keys() - dead)

    @property
    def doubled(self) -> list[str]:
        """Packets that more than one command answers or supersedes."""
        return sorted(packet_id for packet_id, count in self.answers.items() if count > 1)

    @property
    def unrecorded(self) -> int:
        """Unusable entries that did not reach the dead letter."""
        return len(self.unusable - self.letters.keys())

    @property
    def settled(self) -> bool:
        """Whether everything published is accounted for and nothing is left to do."""
        return not (self.lost or self.unrecorded or self.pending or self.unread)


def read_ledger(client: redis.Redis, partitions: int) -> Ledger:
    """Return the account of everything that the streams hold now."""
    published, answers, refused = Counter[str](), Counter[str](), Counter[str]()
    letters, reasons = Counter[tuple[str, str]](), Counter[str]()
    unusable, usable = set[tuple[str, str]](), dict[tuple[str, str], str]()
    pending = unread = decided = 0
    for key in state_keys(partitions):
        for entry_id, fields in _entries(client, key):
            try:
                packet = decode_entry(fields, KEYRING, stream=Stream.STATE).message
            except EntryError:
                unusable.add((key, entry_id))
                continue
            assert isinstance(packet, SystemStatePacket)
            published[packet.packet_id] += 1
            usable[key, entry_id] = packet.packet_id
        waiting, behind = _backlog(client, key)
        pending, unread = pending + waiting, unread + behind
    for _, fields in _entries(client, Stream.COMMANDS):
        command = decode_entry(fields, KEYRING).message
        assert isinstance(command, AdaptationCommand)
        answers.update([command.packet_id, *command.superseded_packet_ids])
        decided += 1
    for _, fields in _entries(client, Stream.TELEMETRY):
        message = decode_entry(fields, KEYRING).message
        assert isinstance(message, TelemetryPacket)
        refused.update(
            event.attributes["packet_id"]
            for event in message.events
            if event.description.startswith("state_") and "packet_id" in event.attributes
        )
    for _, fields in _entries(client, Stream.DEAD_LETTER):
        letters[fields[b"dead_letter_stream"].decode(), fields[b"dead_letter_entry_id"].decode()] += 1
        reasons[fields[b"dead_letter_reason"].decode()] += 1
    return Ledger(
        published, answers, decided, refused, letters, reasons, frozenset(unusable), usable, pending, unread
    )


def state_keys(partitions: int) -> list[str]:
    """Return the keys of the state streams."""
    return [stream_key(Stream.STATE, partition=number, partitions=partitions) for number in range(partitions)]


def saved_run(client: redis.Redis, run_id: str, partitions: int) -> RunState:
    """Return the run's state as it is saved."""
    key = f"tamiyo:run:{{{partition_of(run_id, partitions)}}}:{run_id}"
    payload: Any = client.hget(key, "state")
    assert payload is not None, f"{run_id} has no saved state"
    return decode_snapshot(payload)


def _backlog(client: redis.Redis, key: str) -> tuple[int, int]:
    if not client.exists(key):
        return 0, 0
    groups: Any = client.xinfo_groups(key)
    mine = [group for group in groups if group["name"] == GROUP.encode()]
    if not mine:
        return 0, int(client.xlen(key))  # type: ignore[arg-type]  # redis-py's sync-or-async reply types
    last = mine[0]["last-delivered-id"].decode()
    behind: Any = client.xrange(key, min=f"({last}", count=PAGE)
    return int(mine[0]["pending"]), len(behind)


def _entries(client: redis.Redis, key: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    start = "-"
    while True:
        page: Any = client.xrange(key, min=start, count=PAGE)
        for entry_id, fields in page:
            yield entry_id.decode(), fields
        if len(page) < PAGE:
            return
        start = "(" + page[-1][0].decode()
