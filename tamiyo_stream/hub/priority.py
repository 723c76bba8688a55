"""How urgent a telemetry packet is, and where it goes (domain.md §5.3)."""

from __future__ import annotations

from collections.abc import Iterable

from schemas import urgency
from schemas.catalogue import Stream
from schemas.enums import MessagePriority
from schemas.telemetry import TelemetryEvent, TelemetryPacket


def priority_of(events: Iterable[TelemetryEvent]) -> MessagePriority:
    """Return the priority of a packet with ``events``."""
    return urgency.priority_of((event.description, event.level) for event in events)


def destinations(packet: TelemetryPacket) -> tuple[Stream, ...]:
    """Return the streams ``packet`` goes to: an urgent one to EMERGENCY, with a copy where alerting reads."""
    if packet.priority >= MessagePriority.HIGH:
        return (Stream.EMERGENCY, Stream.TELEMETRY)
    return (Stream.TELEMETRY,)
