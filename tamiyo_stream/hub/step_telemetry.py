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
class CoverageLimits:
    """Average coverage from which ``degraded_inputs`` is raised: below ``warn``, or at most ``critical``."""

    warn: float
    critical: float

    def level(self, average: float) -> TelemetryLevel | None:
        """Return the event's level at this average; None where enough arrived."""
        if average <= self.critical:
            return TelemetryLevel.CRITICAL
        return TelemetryLevel.WARNING if average < self.warn else None


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
    coverage_mandatory: float | None = None
    coverage_limits: CoverageLimits | None = None
    missing_features: Sequence[str] = ()
    bsds_missing: int | None = None
    bsds_failed: int | None = None
    learned_fallbacks: int | None = None
    sampled_edges: int | None = None
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
    ("tamiyo.gnn.mandatory_coverage", "ratio", "coverage_mandatory"),
    ("tamiyo.gnn.bsds_missing", "count", "bsds_missing"),
    ("tamiyo.gnn.bsds_failed", "count", "bsds_failed"),
    ("tamiyo.gnn.learned_fallbacks", "count", "learned_fallbacks"),
    ("tamiyo.gnn.sampled_edges", "count", "sampled_edges"),
)
#: Missing features named in one event.
MAX_NAMED = 16


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
    warning = TelemetryLevel.WARNING
    found: list[tuple[str, TelemetryLevel, dict[str, str]]] = [
        (
            f"state_{refusal.reason}",
            warning,
            {"packet_id": refusal.packet_id, "global_step": str(refusal.global_step)},
        )
        for refusal in measured.refusals
    ]
    found += [("unusable_input", warning, {"detail": problem}) for problem in measured.problems]
    found += _degraded_inputs(measured)
    if measured.reason not in {"", "policy"}:
        found.append((measured.reason, warning, {}))
    return [
        TelemetryEvent(event_id=f"evt-{position}", description=name, level=level, attributes=attributes)
        for position, (name, level, attributes) in enumerate(found, start=1)
    ]


def _degraded_inputs(measured: StepMeasurements) -> list[tuple[str, TelemetryLevel, dict[str, str]]]:
    average, limits = measured.coverage_average, measured.coverage_limits
    level = limits.level(average) if limits is not None and average is not None else None
    if level is None:
        return []
    missing = measured.missing_features
    named = ",".join(missing[:MAX_NAMED]) + (f",… {len(missing)} in all" if len(missing) > MAX_NAMED else "")
    return [("degraded_inputs", level, {"coverage_avg": f"{average:.3f}", "missing_features": named})]
