"""The telemetry of a step: the taxonomy's names, and nothing for what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from schemas.enums import CircuitBreakerState, CommandType, HealthStatus, MessagePriority, TelemetryLevel
from tamiyo_stream.hub.step_telemetry import (
    MAX_NAMED,
    BreakerReading,
    CoverageLimits,
    FieldReportCounts,
    Refusal,
    StepMeasurements,
    step_packet,
)


def measured(**given) -> StepMeasurements:
    values = {
        "run_id": "r",
        "packet_id": "p",
        "global_step": 3,
        "timestamp_ns": 5,
        "policy_version": "tamiyo_gnn_v1",
        "reason": "policy",
    }
    return StepMeasurements(**{**values, **given})


@dataclass(frozen=True)
class Event:
    name: str
    level: TelemetryLevel
    attributes: dict[str, str] = field(default_factory=dict)


def values_of(packet) -> dict[str, float]:
    return {metric.name: metric.value for metric in packet.metrics}


def test_known_figures_carry_the_names_of_the_taxonomy() -> None:
    packet = step_packet(
        measured(
            validation_loss=1.0,
            loss_delta=-0.5,
            inference_ms=12.0,
            value_estimate=0.25,
            risk_index=2,
            risk_score=0.5,
            coverage_average=0.75,
            coverage_mandatory=0.5,
            coverage_types={"node.layer": 0.9},
            bsds_missing=2,
            bsds_failed=1,
            learned_fallbacks=4,
            sampled_edges=0,
            counters={"decided": 7},
        )
    )
    assert values_of(packet) == {
        "tamiyo.validation_loss": 1.0,
        "tamiyo.loss_delta": -0.5,
        "tamiyo.inference.latency_ms": 12.0,
        "tamiyo.gnn.inference.latency_ms": 12.0,
        "tamiyo.gnn.latency_ms": 12.0,
        "tamiyo.policy.value_estimate": 0.25,
        "tamiyo.policy.risk_index": 2.0,
        "tamiyo.policy.risk_score": 0.5,
        "tamiyo.risk.score": 0.5,
        "tamiyo.gnn.feature_coverage": 0.75,
        "tamiyo.gnn.feature_coverage.node.layer": 0.9,
        "tamiyo.gnn.mandatory_coverage": 0.5,
        "tamiyo.gnn.bsds_missing": 2.0,
        "tamiyo.gnn.bsds_failed": 1.0,
        "tamiyo.gnn.learned_fallbacks": 4.0,
        "tamiyo.gnn.sampled_edges": 0.0,
        "tamiyo.intake.decided_total": 7.0,
    }
    assert (packet.source_subsystem, packet.run_id, packet.packet_id, packet.timestamp) == ("tamiyo", "r", "p", 5)


def test_nothing_is_sent_for_a_value_that_is_not_known_and_zero_is_a_value() -> None:
    assert values_of(step_packet(measured())) == {}
    assert values_of(step_packet(measured(loss_delta=0.0))) == {"tamiyo.loss_delta": 0.0}


def test_an_ordinary_step_is_healthy_and_has_no_event() -> None:
    packet = step_packet(measured())
    assert packet.events == []
    assert packet.system_health is not None
    assert packet.system_health.status is HealthStatus.HEALTHY
    assert packet.system_health.indicators["step_index"] == "3"
    assert packet.system_health.indicators["policy_arch"] == "tamiyo_gnn_v1"
    assert packet.priority is MessagePriority.NORMAL


def test_refusals_problems_and_a_reason_become_warnings() -> None:
    packet = step_packet(
        measured(
            reason="loss_not_finite",
            refusals=[Refusal("p1", 1, "stale")],
            problems=["layers.weight_norm has 3 elements, the blueprint has 4 layers"],
        )
    )
    assert [event.description for event in packet.events] == ["state_stale", "unusable_input", "loss_not_finite"]
    assert {event.level for event in packet.events} == {TelemetryLevel.WARNING}
    assert len({event.event_id for event in packet.events}) == 3
    assert packet.events[0].attributes == {"packet_id": "p1", "global_step": "1"}
    assert "layers.weight_norm" in packet.events[1].attributes["detail"]
    assert packet.system_health is not None
    assert packet.system_health.status is HealthStatus.DEGRADED
    assert packet.system_health.summary == "loss_not_finite"


@pytest.mark.parametrize(
    ("average", "level"),
    [
        (0.10, TelemetryLevel.CRITICAL),
        (0.11, TelemetryLevel.WARNING),
        (0.29, TelemetryLevel.WARNING),
        (0.30, None),
        (1.0, None),
    ],
)
def test_degraded_inputs_has_the_level_of_its_threshold(average: float, level: TelemetryLevel | None) -> None:
    limits = CoverageLimits(warn=0.30, critical=0.10)
    packet = step_packet(measured(coverage_average=average, coverage_limits=limits))
    assert [event.level for event in packet.events if event.description == "degraded_inputs"] == (
        [] if level is None else [level]
    )


def test_degraded_inputs_names_what_is_missing_and_says_how_much_more_there_is() -> None:
    limits = CoverageLimits(warn=0.30, critical=0.10)
    missing = [f"layer.feature_{number}" for number in range(MAX_NAMED + 3)]
    (event,) = step_packet(measured(coverage_average=0.2, coverage_limits=limits, missing_features=missing)).events
    assert event.attributes["coverage_avg"] == "0.200"
    assert event.attributes["missing_features"].startswith("layer.feature_0,layer.feature_1,")
    assert event.attributes["missing_features"].endswith(f"… {MAX_NAMED + 3} in all")


def test_a_blending_command_names_its_method_and_selection() -> None:
    packet = step_packet(
        measured(
            blending_method="cosine",
            blending_method_index=1,
            blending_start=0.0,
            blending_end=0.5,
            seed_index=2,
            blueprint_index=-1,
            seed_score=0.25,
            tier="SAFE",
        )
    )
    assert values_of(packet) == {
        "tamiyo.blending.method_index": 1.0,
        "tamiyo.blending.schedule_start": 0.0,
        "tamiyo.blending.schedule_end": 0.5,
        "tamiyo.selection.seed_index": 2.0,
        "tamiyo.selection.blueprint_index": -1.0,
        "tamiyo.selection.seed_score": 0.25,
    }
    assert all(metric.attributes == {"method": "cosine"} for metric in packet.metrics)
    assert [(one.description, one.attributes) for one in packet.events] == [
        ("tamiyo.blending.method", {"method": "cosine"})
    ]
    indicators = packet.system_health.indicators
    assert (indicators["blending_method"], indicators["tier"]) == ("cosine", "SAFE")


def test_breakers_field_reports_and_compile_state_are_reported() -> None:
    packet = step_packet(
        measured(
            breakers={"inference": BreakerReading(CircuitBreakerState.OPEN, 3)},
            field_reports=FieldReportCounts(published=2, pending=1),
            compile_enabled=False,
            compile_fallback_total=1,
            conservative_mode=True,
            budget_ms=45.0,
            metadata_budget_ms=10.0,
        )
    )
    assert values_of(packet) == {
        "tamiyo.conservative_mode": 1.0,
        "tamiyo.decision.conservative_mode": 1.0,
        "tamiyo.decision.budget_ms": 45.0,
        "tamiyo.gnn.compile_enabled": 0.0,
        "tamiyo.gnn.compile_fallback_total": 1.0,
        "tamiyo.breaker.inference_state": 2.0,
        "tamiyo.breaker.inference_failures": 3.0,
        "tamiyo.field_reports.published_total": 2.0,
        "tamiyo.field_reports.retries_total": 0.0,
        "tamiyo.field_reports.dropped_total": 0.0,
        "tamiyo.field_reports.pending_total": 1.0,
    }
    indicators = packet.system_health.indicators
    assert (indicators["mode"], indicators["policy_compile"], indicators["gnn_compile"]) == ("1", "0", "0")
    assert (indicators["timeout_budget_ms"], indicators["metadata_timeout_budget_ms"]) == ("45.0", "10.0")


def test_a_total_that_is_only_sent_above_zero_is_left_out_at_zero() -> None:
    assert "tamiyo.gnn.compile_fallback_total" not in values_of(step_packet(measured(compile_fallback_total=0)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_not_sent(value: float) -> None:
    assert values_of(step_packet(measured(training_loss=value))) == {}


def test_a_decisions_own_events_replace_those_made_of_its_reason_and_coverage() -> None:
    critical = Event("degraded_inputs", TelemetryLevel.CRITICAL, {"coverage_avg": "0.1"})
    packet = step_packet(
        measured(
            reason="loss_spike",
            events=[Event("loss_spike", TelemetryLevel.WARNING, {"delta": "0.2"}), critical],
            coverage_average=0.1,
            coverage_limits=CoverageLimits(warn=0.3, critical=0.1),
        )
    )
    assert [one.description for one in packet.events] == ["loss_spike", "degraded_inputs"]
    assert packet.events[0].attributes == {"delta": "0.2"}


@pytest.mark.parametrize(
    ("given", "status", "summary", "priority"),
    [
        ({}, HealthStatus.HEALTHY, "policy", MessagePriority.NORMAL),
        (
            {"events": [Event("loss_spike", TelemetryLevel.WARNING)], "reason": "loss_spike"},
            HealthStatus.DEGRADED,
            "loss_spike",
            MessagePriority.HIGH,
        ),
        (
            {"events": [Event("emergency_halt", TelemetryLevel.CRITICAL)], "reason": "emergency_halt"},
            HealthStatus.CRITICAL,
            "emergency_halt",
            MessagePriority.CRITICAL,
        ),
        (
            {
                "events": [Event("bsds_present", TelemetryLevel.INFO)],
                "command_type": CommandType.PAUSE,
                "reason": "conservative_mode",
            },
            HealthStatus.DEGRADED,
            "conservative_mode",
            MessagePriority.NORMAL,
        ),
        ({"command_type": CommandType.PAUSE}, HealthStatus.HEALTHY, "policy", MessagePriority.NORMAL),
    ],
)
def test_health_and_priority_follow_the_events(given, status, summary, priority) -> None:
    packet = step_packet(measured(**given))
    assert packet.system_health.status is status
    assert packet.system_health.summary == summary
    assert packet.priority is priority
