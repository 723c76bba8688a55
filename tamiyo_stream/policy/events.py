"""What a decision reports beside its command, and how urgent that is (domain.md §5.3, §6.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas import urgency
from schemas.enums import MessagePriority, TelemetryLevel


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    """One event for the telemetry packet: ``name`` becomes the event's description, the machine code."""

    name: str
    level: TelemetryLevel
    attributes: Mapping[str, str] = field(default_factory=dict)


def priority_of(events: Iterable[PolicyEvent]) -> MessagePriority:
    """Return the priority of a packet with ``events``: HIGH and CRITICAL also go to the emergency stream."""
    return urgency.priority_of((event.name, event.level) for event in events)
