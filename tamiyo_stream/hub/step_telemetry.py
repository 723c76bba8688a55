"""The telemetry packet that goes with each commit (domain.md §6.1-§6.5). Nothing is sent for a value not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.enums import HealthStatus, MessagePriority, TelemetryLevel
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket

SOURCE = "tamiyo"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A state packet that got no decision, and why (``stale``, ``duplicate``)."""

    packet_id: str
    global_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepMeasurements:
    """What one step's telemetry is made of; None = not known, left out."""

    run_id: str
    packet_id: str
    global_step: int | None
    timestamp_ns: int
    policy_version: str
    reason: str = ""
    training_loss: float | None = None
    validation_loss: float | None = None
    loss_delta: float | None = None
    inference_ms: float | None = None
    decision_ms: float | None = None
    value_estimate: float | None = None
    risk_index: int | None = None
    risk_score: float | None = None
    coverage_average: float | None = None
    coverage_types: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    refusals: Sequence[Refusal] = ()
    problems: Sequence[str] = ()


#: Metric name -> unit and the measurement it shows.
_METRICS: tuple[tuple[str, str, str], ...] = (
    ("tamiyo.training_loss", "loss", "training_loss"),
    ("tamiyo.validation_loss", "loss", "validation_loss"),
    ("tamiyo.loss_delta", "loss", "loss_delta"),
    ("tamiyo.inference.latency_ms", "ms", "inference_ms"),
    ("tamiyo.gnn.inference.latency_ms", "ms", "inference_ms"),
    ("tamiyo.decision.latency_ms", "ms", "decision_ms"),
    ("tamiyo.policy.value_estimate", "score", "value_estimate"),
    ("tamiyo.policy.risk_index", "index", "risk_index"),
    ("tamiyo.policy.risk_score", "score", "risk_score"),
    ("tamiyo.gnn.feature_coverage", "ratio", "coverage_average"),
)


def step_packet(measured: StepMeasurements) -> TelemetryPacket:
    """Return the telemetry packet for one commit."""
    events = _events(measured)
    degraded = any(event.level >= TelemetryLevel.WARNING for event in events)
    indicators = {
        "policy": measured.policy_version,
        "policy_arch": measured.policy_version,
        "priority": f"MESSAGE_PRIORITY_{MessagePriority.NORMAL.name}",
        "reason": measured.reason,
    }
    if measured.global_step is not None:
        indicators["step_index"] = str(measured.global_step)
    return TelemetryPacket(
        packet_id=measured.packet_id,
        timestamp=measured.timestamp_ns,
        source_subsystem=SOURCE,
        run_id=measured.run_id,
        metrics=_metrics(measured),
        events=events,
        system_health=SystemHealth(
            status=HealthStatus.DEGRADED if degraded else HealthStatus.HEALTHY,
            summary=events[-1].description if events else measured.reason or "stable",
            indicators=indicators,
        ),
    )


def _metrics(measured: StepMeasurements) -> list[MetricPoint]:
    values = [(name, unit, getattr(measured, source)) for name, unit, source in _METRICS]
    values += [
        (f"tamiyo.gnn.feature_coverage.{name}", "ratio", value) for name, value in measured.coverage_types.items()
    ]
    values += [(f"tamiyo.intake.{name}_total", "count", count) for name, count in measured.counters.items()]
    return [
        MetricPoint(name=name, value=float(value), unit=unit) for name, unit, value in values if value is not None
    ]


def _events(measured: StepMeasurements) -> list[TelemetryEvent]:
    found = [
        (
            f"state_{refusal.reason}",
            {"packet_id": refusal.packet_id, "global_step": str(refusal.global_step)},
        )
        for refusal in measured.refusals
    ]
    found += [("degraded_inputs", {"detail": problem}) for problem in measured.problems]
    if measured.reason not in {"", "policy"}:
        found.append((measured.reason, {}))
    return [
        TelemetryEvent(
            event_id=f"evt-{position}", description=name, level=TelemetryLevel.WARNING, attributes=attributes
        )
        for position, (name, attributes) in enumerate(found, start=1)
    ]
