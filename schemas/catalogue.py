"""The stream table: which message types exist, which stream carries them, and how large they may be.

One row per message type (design §4). Reader, codec, AsyncAPI export and documentation all follow this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.kasmina import SeedExport
from schemas.operator import OperatorDirective
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
    """Hard limits of a payload, checked before or while it is unpacked. Sizes in bytes, lengths in elements.

    ``containers`` bounds the lists and maps of the whole payload: an empty one takes a byte on the wire and a
    hundred in memory. ``nesting`` counts the payload's own map as the first level.
    """

    payload: int
    array: int = 4096
    map: int = 1024
    string: int = 4096
    binary: int = 4096
    containers: int = 20_000
    nesting: int = 8


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One row of the stream table: where Tamiyo reads a message type, and where it writes it."""

    type: type[Message]
    limits: Limits
    received_on: tuple[Stream, ...] = ()
    sent_on: tuple[Stream, ...] = ()

    @property
    def name(self) -> str:
        """The ``type`` field of an entry that carries this message."""
        return self.type.__name__

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that carry this message, in either direction."""
        return tuple(dict.fromkeys(self.received_on + self.sent_on))


#: 100 000 nodes is the design target (§6); blueprints and states are sized for it. The dead letter carries no
#: message type of its own but refused entries of any.
MESSAGES: dict[str, MessageSpec] = {
    spec.name: spec
    for spec in (
        MessageSpec(
            SystemStatePacket,
            Limits(payload=8 * MIB, array=500_000, binary=2 * MIB),
            received_on=(Stream.STATE,),
        ),
        MessageSpec(
            SeedExport,
            Limits(payload=4 * MIB, array=20_000, containers=100_000),
            received_on=(Stream.SEEDS,),
        ),
        MessageSpec(BlueprintSafetySheet, Limits(payload=64 * KIB), received_on=(Stream.SAFETY,)),
        MessageSpec(BlueprintSafetyFailed, Limits(payload=16 * KIB), received_on=(Stream.SAFETY,)),
        MessageSpec(
            Blueprint,
            Limits(payload=32 * MIB, array=500_000, map=20_000, binary=4 * MIB, containers=100_000),
            received_on=(Stream.BLUEPRINTS,),
        ),
        MessageSpec(
            PolicyUpdate,
            Limits(payload=64 * MIB, binary=64 * MIB),
            received_on=(Stream.POLICY,),
        ),
        MessageSpec(OperatorDirective, Limits(payload=16 * KIB), received_on=(Stream.POLICY,)),
        MessageSpec(RegistrySnapshot, Limits(payload=1 * MIB, map=20_000), received_on=(Stream.POLICY,)),
        MessageSpec(
            TelemetryPacket,
            Limits(payload=1 * MIB),
            received_on=(Stream.TELEMETRY,),
            sent_on=(Stream.TELEMETRY, Stream.EMERGENCY),
        ),
        MessageSpec(EmergencySignal, Limits(payload=64 * KIB), received_on=(Stream.EMERGENCY,)),
        MessageSpec(
            AdaptationCommand,
            Limits(payload=1 * MIB, string=256 * KIB),
            sent_on=(Stream.COMMANDS, Stream.EMERGENCY),
        ),
        MessageSpec(FieldReport, Limits(payload=256 * KIB), sent_on=(Stream.REPORTS,)),
    )
}


def messages_on(stream: Stream) -> tuple[MessageSpec, ...]:
    """Return the rows of the messages that ``stream`` carries."""
    return tuple(spec for spec in MESSAGES.values() if stream in spec.streams)
