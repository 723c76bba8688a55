"""What really happened, read from the streams alone: was every published step decided exactly once?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.enums import BlueprintKind
from schemas.kasmina import SeedExport
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import RELATIONS

PAGE = 500
#: Coverage keys of what the requirements demand of upstream.
MANDATORY_KEYS = frozenset(
    [f"{schema.family}.{c.name}" for schema in NODES.values() for c in schema.channels if c.mandatory]
    + [f"{relation.family}.{a.name}" for relation in RELATIONS for a in relation.attributes if a.mandatory]
)


@dataclass(frozen=True, slots=True)
class Audit:
    """The streams' account of one run.

    Attributes:
        published: distinct state packets on the state stream.
        decided: packets that a command answers. superseded: packets that a newer one's command names.
        duplicates: answers beyond the first to one packet. missing: packets neither decided nor superseded.
        latencies_ms: per decided packet, Redis's time of its command minus that of the packet; whole ms.
        edges: data-flow edges of the newest blueprint.
        feature_coverage, mandatory_coverage: average share of what the network reads, of all and of mandatory
            features; the median over the second half of the decisions, for a graft that just joined has gaps for a
            few steps. incomplete_features: mandatory ones below 1 in most of them, with their newest share.
        seeds: by seed id, the stages it went through, its newest kernel and alpha.
        policy_versions: the policies in the order in which they decided, with their decisions.
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
    mandatory_coverage: float | None
    incomplete_features: dict[str, float]
    kernels: int
    safety_sheets: int
    seeds: dict[str, dict[str, Any]]
    policy_versions: list[dict[str, Any]]

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
    settled = [command.annotations for _, command in commands[len(commands) // 2 :]]
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
        feature_coverage=_median(
            [float(notes["feature_coverage"]) for notes in settled if "feature_coverage" in notes]
        ),
        mandatory_coverage=_mandatory_coverage(client, run_id, keyring),
        incomplete_features=_incomplete([json.loads(notes.get("coverage_map", "{}")) for notes in settled]),
        kernels=_count(client, Stream.BLUEPRINTS, keyring, _is_kernel),
        safety_sheets=_count(client, Stream.SAFETY, keyring, lambda m: isinstance(m, BlueprintSafetySheet)),
        seeds=_seeds(client, run_id, keyring),
        policy_versions=policies_of(command for _, command in commands),
    )


def policies_of(commands: Iterable[AdaptationCommand]) -> list[dict[str, Any]]:
    """Return version, digest, first step and decisions of each policy; commands without one are left out."""
    found: list[dict[str, Any]] = []
    for command in commands:
        digest = command.annotations.get("policy_digest")
        if digest is None:
            continue
        if not found or found[-1]["digest"] != digest:
            version = command.annotations.get("policy_version", "")
            found.append({"version": version, "digest": digest, "from_step": command.global_step, "decisions": 0})
        found[-1]["decisions"] += 1
    return found


def _mandatory_coverage(client: redis.Redis, run_id: str, keyring: Keyring | None) -> float | None:
    values = [
        metric.value
        for _, message in _messages(client, Stream.TELEMETRY, keyring)
        if isinstance(message, TelemetryPacket) and message.run_id == run_id
        for metric in message.metrics
        if metric.name == "tamiyo.gnn.mandatory_coverage"
    ]
    return _median(values[len(values) // 2 :])


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _incomplete(coverages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mandatory keys that are not covered in most of ``coverages``, with their newest share."""
    short = Counter(key for coverage in coverages for key, share in coverage.items() if share < 1)
    often = {key for key, times in short.items() if times > len(coverages) / 2}
    return {key: coverages[-1].get(key, 0.0) for key in sorted(often & MANDATORY_KEYS)}


def _count(client: redis.Redis, stream: Stream, keyring: Keyring | None, wanted: Callable[[Message], bool]) -> int:
    return sum(wanted(message) for _, message in _messages(client, stream, keyring))


def _is_kernel(message: Message) -> bool:
    return isinstance(message, Blueprint) and message.kind is BlueprintKind.KERNEL


def _seeds(client: redis.Redis, run_id: str, keyring: Keyring | None) -> dict[str, dict[str, Any]]:
    seeds: dict[str, dict[str, Any]] = {}
    for _, message in _messages(client, Stream.SEEDS, keyring):
        if not isinstance(message, SeedExport) or message.run_id != run_id:
            continue
        for seed in message.seeds:
            known = seeds.setdefault(seed.seed_id, {"stages": [], "blueprint": None, "alpha": 0.0})
            if known["stages"][-1:] != [seed.stage.name]:
                known["stages"].append(seed.stage.name)
            known["blueprint"], known["alpha"] = seed.blueprint_id, seed.alpha or 0.0
    return seeds


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
