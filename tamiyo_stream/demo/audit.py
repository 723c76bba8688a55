"""What really happened, read from the streams alone: was every published step decided exactly once?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint

PAGE = 500


@dataclass(frozen=True, slots=True)
class Audit:
    """The streams' account of one run.

    Attributes:
        published: distinct state packets on the state stream.
        decided: packets that a command answers. superseded: packets that a newer one's command names.
        duplicates: answers beyond the first to one packet. missing: packets neither decided nor superseded.
        latencies_ms: per decided packet, Redis's time of its command minus that of the packet; whole ms.
        edges: data-flow edges of the newest blueprint.
    """

    published: int
    decided: int
    superseded: int
    duplicates: int
    missing: int
    latencies_ms: tuple[float, ...]
    commands_by_type: dict[str, int]
    layers: int
    edges: int
    feature_coverage: float | None

    def latency_ms(self, percentile: float) -> float | None:
        """Return the percentile (0..100) of the latencies; None where nothing was decided."""
        return float(np.percentile(self.latencies_ms, percentile)) if self.latencies_ms else None


def audit(client: redis.Redis, run_id: str, keyring: Keyring | None) -> Audit:
    """Read the state, command and blueprint streams and return the account of ``run_id``."""
    packets = {
        message.packet_id: at_ms
        for at_ms, message in _messages(client, Stream.STATE, keyring)
        if isinstance(message, SystemStatePacket) and message.run_id == run_id
    }
    commands = [
        (at_ms, message)
        for at_ms, message in _messages(client, Stream.COMMANDS, keyring)
        if isinstance(message, AdaptationCommand) and message.run_id == run_id
    ]
    answers = Counter(command.packet_id for _, command in commands)
    superseded = {packet_id for _, command in commands for packet_id in command.superseded_packet_ids}
    layers, edges = _blueprint_size(client, run_id, keyring)
    coverages = [command.annotations.get("feature_coverage") for _, command in commands]
    return Audit(
        published=len(packets),
        decided=len(answers),
        superseded=len(superseded - answers.keys()),
        duplicates=sum(answers.values()) - len(answers) + len(superseded & answers.keys()),
        missing=len(packets.keys() - answers.keys() - superseded),
        latencies_ms=tuple(at - packets[c.packet_id] for at, c in commands if c.packet_id in packets),
        commands_by_type=dict(Counter(command.command_type.name for _, command in commands)),
        layers=layers,
        edges=edges,
        feature_coverage=float(coverages[-1]) if coverages and coverages[-1] else None,
    )


def _blueprint_size(client: redis.Redis, run_id: str, keyring: Keyring | None) -> tuple[int, int]:
    size = (0, 0)
    for _, message in _messages(client, Stream.BLUEPRINTS, keyring):
        if isinstance(message, Blueprint) and message.run_id == run_id and message.graph is not None:
            connects = message.graph.adjacency.connects if message.graph.adjacency is not None else None
            size = (len(message.graph.layers.layer_id), len(connects.source) if connects is not None else 0)
    return size


def _messages(client: redis.Redis, stream: Stream, keyring: Keyring | None) -> Iterator[tuple[float, Message]]:
    """Yield (Redis time in ms, message) of every entry of ``stream``."""
    start = "-"
    while True:
        page: Any = client.xrange(stream.value, min=start, count=PAGE)
        for entry_id, fields in page:
            yield float(entry_id.split(b"-")[0]), decode_entry(fields, keyring).message
        if len(page) < PAGE:
            return
        start = "(" + page[-1][0].decode()
