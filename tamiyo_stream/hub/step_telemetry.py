"""The telemetry packet that goes with each commit (domain.md §6.1-§6.5). Nothing is sent for a value not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.enums import CircuitBreakerState, CommandType, HealthStatus, TelemetryLevel
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket
from tamiyo_stream.hub.priority import priority_of
from tamiyo_stream.hub.taxonomy import STEP_METRICS

SOURCE = "tamiyo"


class StepEvent(Protocol):
    """An event of a decision: its machine code, how grave it is, and its particulars."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class
    @property
    def level(self) -> TelemetryLevel: ...  # noqa: D102
    @property
    def attributes(self) -> Mapping[str, str]: ...  # noqa: D102


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
class BreakerReading:
    """State of one of Tamiyo's breakers and the failures that count towards opening it."""

    state: CircuitBreakerState
    failures: int


@dataclass(frozen=True, slots=True)
class FieldReportCounts:
    """What became of field reports since the last packet; ``pending``: observation windows open now."""

    published: int = 0
    retries: int = 0
    dropped: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class StepMeasurements:
    """What one step's telemetry is made of; None = not known, left out.

    ``events`` are the decision's own (rules that fired, conservative mode, breakers). ``tier`` is that of the
    command's kernel. Fields that a metric shows are named in :mod:`tamiyo_stream.hub.taxonomy`.
    """

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
    graph_ms: float | None = None
    decision_ms: float | None = None
    budget_ms: float | None = None
    metadata_budget_ms: float | None = None
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
    command_type: CommandType | None = None
    conservative_mode: bool | None = None
    compile_enabled: bool | None = None
    compile_warm_ms: float | None = None
    compile_fallback_total: int | None = None
    blending_method: str = ""
    blending_method_index: int | None = None
    blending_start: float | None = None
    blending_end: float | None = None
    seed_index: int | None = None
    blueprint_index: int | None = None
    seed_score: float | None = None
    blueprint_risk: float | None = None
    tier: str = ""
    pause_quota: int | None = None
    pause_quota_remaining: int | None = None
    breakers: Mapping[str, BreakerReading] = field(default_factory=dict)
    field_reports: FieldReportCounts | None = None
    events: Sequence[StepEvent] = ()


#: Missing features named in one event.
MAX_NAMED = 16
_Found = tuple[str, TelemetryLevel, Mapping[str, str]]


def step_packet(measured: StepMeasurements) -> TelemetryPacket:
    """Return the telemetry packet for one commit; :func:`~tamiyo_stream.hub.priority.destinations` routes it."""
    events = _events(measured)
    return TelemetryPacket(
        packet_id=measured.packet_id,
        timestamp=measured.timestamp_ns,
        source_subsystem=SOURCE,
        run_id=measured.run_id,
        metrics=_metrics(measured),
        events=events,
        system_health=SystemHealth(
            status=_status(measured, events),
            summary=_summary(measured, events),
            indicators=_indicators(measured, events),
        ),
    )


def _metrics(measured: StepMeasurements) -> list[MetricPoint]:
    points = list[MetricPoint]()
    for metric in STEP_METRICS:
        value = getattr(measured, metric.field) if metric.field else None
        if value is None or not math.isfinite(value) or (metric.when == "above 0" and value <= 0):
            continue
        about = {"method": measured.blending_method} if "method" in metric.attributes else {}
        points += [
            MetricPoint(name=name, value=float(value), unit=metric.unit, attributes=about) for name in metric.names
        ]
    points += [MetricPoint(name=name, value=float(value), unit=unit) for name, unit, value in _sets(measured)]
    return points


def _sets(measured: StepMeasurements) -> list[tuple[str, str, float]]:
    """Return the metrics that come one per name of a set: name, unit, value."""
    found: list[tuple[str, str, float]] = [
        (f"tamiyo.gnn.feature_coverage.{name}", "ratio", value) for name, value in measured.coverage_types.items()
    ]
    for name, breaker in measured.breakers.items():
        found.append((f"tamiyo.breaker.{name}_state", "state", breaker.state))
        found.append((f"tamiyo.breaker.{name}_failures", "count", breaker.failures))
    reports = measured.field_reports
    if reports is not None:
        found += [
            (f"tamiyo.field_reports.{name}_total", "count", getattr(reports, name))
            for name in ("published", "retries", "dropped", "pending")
        ]
    found += [(f"tamiyo.intake.{name}_total", "count", count) for name, count in measured.counters.items()]
    return found


def _events(measured: StepMeasurements) -> list[TelemetryEvent]:
    warning = TelemetryLevel.WARNING
    found: list[_Found] = [
        (
            f"state_{refusal.reason}",
            warning,
            {"packet_id": refusal.packet_id, "global_step": str(refusal.global_step)},
        )
        for refusal in measured.refusals
    ]
    found += [("unusable_input", warning, {"detail": problem}) for problem in measured.problems]
    found += [(event.name, event.level, event.attributes) for event in measured.events]
    told = {name for name, _, _ in found}
    if "degraded_inputs" not in told:
        found += _degraded_inputs(measured)
    if measured.blending_method:
        found.append(("tamiyo.blending.method", TelemetryLevel.INFO, {"method": measured.blending_method}))
    if not measured.events and measured.reason not in {"", "policy"}:
        found.append((measured.reason, warning, {}))
    return [
        TelemetryEvent(event_id=f"evt-{position}", description=name, level=level, attributes=dict(attributes))
        for position, (name, level, attributes) in enumerate(found, start=1)
    ]


def _degraded_inputs(measured: StepMeasurements) -> list[_Found]:
    average, limits = measured.coverage_average, measured.coverage_limits
    level = limits.level(average) if limits is not None and average is not None else None
    if level is None:
        return []
    missing = measured.missing_features
    named = ",".join(missing[:MAX_NAMED]) + (f",… {len(missing)} in all" if len(missing) > MAX_NAMED else "")
    return [("degraded_inputs", level, {"coverage_avg": f"{average:.3f}", "missing_features": named})]


def _status(measured: StepMeasurements, events: Sequence[TelemetryEvent]) -> HealthStatus:
    gravest = max((event.level for event in events), default=TelemetryLevel.INFO)
    if gravest is TelemetryLevel.CRITICAL:
        return HealthStatus.CRITICAL
    degraded = gravest >= TelemetryLevel.WARNING or _risk_pause(measured)
    return HealthStatus.DEGRADED if degraded else HealthStatus.HEALTHY


def _summary(measured: StepMeasurements, events: Sequence[TelemetryEvent]) -> str:
    if _risk_pause(measured):
        return measured.reason
    notable = [event for event in events if event.level >= TelemetryLevel.WARNING]
    return notable[-1].description if notable else measured.reason or "stable"


def _risk_pause(measured: StepMeasurements) -> bool:
    """Whether something paused the step; the network's own wish to pause or do nothing is no illness."""
    return measured.command_type is CommandType.PAUSE and measured.reason not in {
        "",
        "policy",
        "no_seed_candidates",
    }


def _indicators(measured: StepMeasurements, events: Sequence[TelemetryEvent]) -> dict[str, str]:
    told: dict[str, str | None] = {
        "policy": measured.policy_version,
        "policy_arch": measured.policy_version,
        "priority": f"MESSAGE_PRIORITY_{priority_of(events).name}",
        "reason": measured.reason,
        "mode": _flag(measured.conservative_mode),
        "policy_compile": _flag(measured.compile_enabled),
        "gnn_compile": _flag(measured.compile_enabled),
        "timeout_budget_ms": _milliseconds(measured.budget_ms),
        "metadata_timeout_budget_ms": _milliseconds(measured.metadata_budget_ms),
        "blending_method": measured.blending_method or None,
        "tier": measured.tier or None,
        "step_index": str(measured.global_step) if measured.global_step is not None else None,
    }
    return {name: text for name, text in told.items() if text is not None}


def _flag(value: bool | None) -> str | None:
    return None if value is None else str(int(value))


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
