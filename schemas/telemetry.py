"""Telemetry and emergency messages, in both directions (``domain.md`` §2.9, §2.10)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import EmergencyLevel, HealthStatus, MessagePriority, TelemetryLevel
from schemas.record import Count, Identifier, Message, Record, TimestampNs, doc


class MetricPoint(Record, frozen=True, kw_only=True):
    """One number. Names: ``domain.md`` §2.14, §2.15, §6.2."""

    name: Annotated[Identifier, doc("As tamiyo.gnn.feature_coverage")]
    value: Annotated[float, doc("In the point's unit")]
    unit: Annotated[str, doc("As ms, ratio, count; empty = unitless")] = ""
    attributes: Annotated[dict[str, str], doc("What the number is of, as seed_id")] = {}


class TelemetryEvent(Record, frozen=True, kw_only=True):
    """Something that happened. Codes: ``domain.md`` §5, §6.3."""

    event_id: Annotated[str, doc("Unique within the packet, as evt-1")]
    description: Annotated[Identifier, doc("The machine code, as loss_spike")]
    level: TelemetryLevel = TelemetryLevel.INFO
    attributes: Annotated[dict[str, str], doc("Particulars, as reason")] = {}


class TraceSpan(Record, frozen=True, kw_only=True):
    """A timed piece of work."""

    span_id: Annotated[str, doc("Unique within the packet")]
    parent_span_id: Annotated[str | None, doc("Span it is part of")] = None
    name: Annotated[str, doc("What was done")]
    start_time: TimestampNs
    end_time: TimestampNs
    attributes: Annotated[dict[str, str], doc("Particulars")] = {}


class SystemHealth(Record, frozen=True, kw_only=True):
    """Health of the source. ``indicators["priority"]`` holds the priority's name: Leyline has no field for it."""

    status: HealthStatus = HealthStatus.UNKNOWN
    summary: Annotated[str, doc("One line for people")] = ""
    indicators: Annotated[dict[str, str], doc("Named states, as mode and tier (domain.md §6.5)")] = {}


class TelemetryPacket(Message, frozen=True, kw_only=True):
    """Metrics, events, spans and health of one source at one moment."""

    packet_id: Annotated[Identifier, doc("Unique per source")]
    timestamp: TimestampNs
    source_subsystem: Annotated[Identifier, doc("tolaria, kasmina, tamiyo, …")]
    level: TelemetryLevel = TelemetryLevel.INFO
    run_id: Annotated[str | None, doc("Training run the packet describes")] = None
    metrics: Annotated[list[MetricPoint], doc("Numbers")] = []
    events: Annotated[list[TelemetryEvent], doc("What happened")] = []
    spans: Annotated[list[TraceSpan], doc("What took how long")] = []
    system_health: Annotated[SystemHealth | None, doc("Health of the source")] = None

    @property
    def priority(self) -> MessagePriority:
        """Priority from the health indicator; NORMAL where absent or not a known name."""
        name = self.system_health.indicators.get("priority", "") if self.system_health else ""
        return MessagePriority.__members__.get(name.removeprefix("MESSAGE_PRIORITY_"), MessagePriority.NORMAL)


class EmergencySignal(Message, frozen=True, kw_only=True):
    """Tolaria's emergency level: L3 asks for conservative mode, L4 stops SEED commands."""

    level: EmergencyLevel
    reason: Annotated[str, doc("Why the level was raised")]
    origin: Annotated[str, doc("Subsystem that raised it, as tolaria")]
    triggered_at: TimestampNs
    monotonic_time_ms: Annotated[Count | None, doc("The origin's monotonic clock", "ms")] = None
    run_id: Annotated[str | None, doc("Run concerned; absent = all")] = None
    attributes: Annotated[dict[str, str], doc("Particulars, as epoch, failure_reason, mode")] = {}
