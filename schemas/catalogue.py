"""The stream table: which message types exist, which stream carries them, and how large they may be.

One row per message type (design §4). Reader, codec, AsyncAPI export and documentation all follow this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.kasmina import SeedExport
from schemas.record import Message
from schemas.simic import PolicyUpdate, RegistrySnapshot
from schemas.tamiyo import AdaptationCommand, FieldReport
from schemas.telemetry import EmergencySignal, TelemetryPacket
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint

KIB = 1024
MIB = 1024 * KIB


class Stream(StrEnum):
    """Roles of the streams; the values are the default names (settings may rename them)."""

    STATE = "oona.tolaria.state"
    SEEDS = "oona.kasmina.seeds"
    SAFETY = "oona.urabrask.bsds"
    BLUEPRINTS = "oona.urza.blueprints"
    POLICY = "oona.policy"
    TELEMETRY = "oona.telemetry"
    COMMANDS = "oona.tamiyo.commands"
    REPORTS = "oona.tamiyo.reports"
    EMERGENCY = "oona.emergency"
    DEAD_LETTER = "oona.deadletter"


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of a payload, checked before or while it is unpacked. Sizes in bytes, lengths in elements."""

    payload: int
    array: int = 4096
    map: int = 1024
    string: int = 4096
    binary: int = 0
    nesting: int = 8


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One row of the stream table."""

    type: type[Message]
    streams: tuple[Stream, ...]
    limits: Limits

    @property
    def name(self) -> str:
        """The ``type`` field of an entry that carries this message."""
        return self.type.__name__


#: 100 000 nodes is the design target (§6); blueprints and states are sized for it.
MESSAGES: dict[str, MessageSpec] = {
    spec.name: spec
    for spec in (
        MessageSpec(
            SystemStatePacket,
            (Stream.STATE,),
            Limits(payload=8 * MIB, array=500_000, map=1024, binary=2 * MIB),
        ),
        MessageSpec(SeedExport, (Stream.SEEDS,), Limits(payload=4 * MIB, array=20_000)),
        MessageSpec(BlueprintSafetySheet, (Stream.SAFETY,), Limits(payload=64 * KIB)),
        MessageSpec(BlueprintSafetyFailed, (Stream.SAFETY,), Limits(payload=16 * KIB)),
        MessageSpec(
            Blueprint,
            (Stream.BLUEPRINTS,),
            Limits(payload=32 * MIB, array=500_000, map=20_000, binary=4 * MIB),
        ),
        MessageSpec(PolicyUpdate, (Stream.POLICY,), Limits(payload=64 * MIB, binary=64 * MIB)),
        MessageSpec(RegistrySnapshot, (Stream.POLICY,), Limits(payload=1 * MIB, map=20_000)),
        MessageSpec(TelemetryPacket, (Stream.TELEMETRY, Stream.EMERGENCY), Limits(payload=1 * MIB)),
        MessageSpec(EmergencySignal, (Stream.EMERGENCY,), Limits(payload=64 * KIB)),
        MessageSpec(
            AdaptationCommand, (Stream.COMMANDS, Stream.EMERGENCY), Limits(payload=1 * MIB, string=256 * KIB)
        ),
        MessageSpec(FieldReport, (Stream.REPORTS,), Limits(payload=256 * KIB)),
    )
}


def messages_on(stream: Stream) -> tuple[MessageSpec, ...]:
    """Return the rows of the messages that ``stream`` carries."""
    return tuple(spec for spec in MESSAGES.values() if stream in spec.streams)
