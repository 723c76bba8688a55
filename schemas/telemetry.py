"""Telemetry and emergency messages, in both directions (``domain.md`` §2.9, §2.10)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import EmergencyLevel, HealthStatus, MessagePriority, TelemetryLevel
from schemas.record import Identifier, Message, Record, TimestampNs, doc


class MetricPoint(Record, frozen=True, kw_only=True):
    name: Identifier
    value: float
    unit: str = ""
    attributes: dict[str, str] = {}


class TelemetryEvent(Record, frozen=True, kw_only=True):
    """``description`` is the machine code, as ``loss_spike``."""

    event_id: str
    description: Identifier
    level: TelemetryLevel = TelemetryLevel.INFO
    attributes: dict[str, str] = {}


class TraceSpan(Record, frozen=True, kw_only=True):
    span_id: str
    parent_span_id: str | None = None
    name: str
    start_time: TimestampNs
    end_time: TimestampNs
    attributes: dict[str, str] = {}


class SystemHealth(Record, frozen=True, kw_only=True):
    """``indicators["priority"]`` holds the priority's name: Leyline has no field for it."""

    status: HealthStatus = HealthStatus.UNKNOWN
    summary: str = ""
    indicators: dict[str, str] = {}


class TelemetryPacket(Message, frozen=True, kw_only=True):
    """Metrics, events, spans and health of one source at one moment."""

    packet_id: Identifier
    timestamp: TimestampNs
    source_subsystem: Annotated[Identifier, doc("tolaria, kasmina, tamiyo, …")]
    level: TelemetryLevel = TelemetryLevel.INFO
    run_id: Annotated[str | None, doc("Training run the packet describes")] = None
    metrics: list[MetricPoint] = []
    events: list[TelemetryEvent] = []
    spans: list[TraceSpan] = []
    system_health: SystemHealth | None = None

    @property
    def priority(self) -> MessagePriority:
        """Priority from the health indicator; NORMAL where absent or not a known name."""
        name = self.system_health.indicators.get("priority", "") if self.system_health else ""
        return MessagePriority.__members__.get(name.removeprefix("MESSAGE_PRIORITY_"), MessagePriority.NORMAL)


class EmergencySignal(Message, frozen=True, kw_only=True):
    """Tolaria's emergency level: L3 asks for conservative mode, L4 stops SEED commands."""

    level: EmergencyLevel
    reason: str
    origin: str
    triggered_at: TimestampNs
    monotonic_time_ms: int | None = None
    run_id: str | None = None
    attributes: dict[str, str] = {}
