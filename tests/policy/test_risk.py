"""The risk table, rule by rule, and what its rules make of a step together."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from schemas.enums import (
    BlueprintTier,
    CircuitBreakerState,
    EmergencyLevel,
    HandlingClass,
    HazardBand,
    MessagePriority,
    TelemetryLevel,
)
from tamiyo_stream.policy.events import PolicyEvent, priority_of
from tamiyo_stream.policy.risk import assess, events_of
from tamiyo_stream.policy.risk_rules import RISK_RULES
from tamiyo_stream.policy.rules import Downgrade
from tamiyo_stream.policy.signals import Signals
from tamiyo_stream.policy.thresholds import RiskThresholds

INFO, WARNING, ERROR, CRITICAL = (
    TelemetryLevel.INFO,
    TelemetryLevel.WARNING,
    TelemetryLevel.ERROR,
    TelemetryLevel.CRITICAL,
)
NONE, OPTIMIZER, PAUSE = Downgrade.NONE, Downgrade.OPTIMIZER, Downgrade.PAUSE
JUST = 1e-9


def graft(**signals) -> Signals:
    return Signals(grafts=True, **signals)


#: domain.md §5.1 row -> signals at the edge, event, level, action on a graft, action on anything else (None = does
#: not fire there), whether it enters conservative mode.
FIRES = [
    (1, {"risk_score": 0.0}, "policy_risk_signal", INFO, NONE, NONE, False),
    (1, {"risk_score": 0.98}, "policy_risk_critical", CRITICAL, PAUSE, PAUSE, True),
    (1, {"risk_score": 0.85}, "policy_risk_elevated", WARNING, OPTIMIZER, None, False),
    (2, {"conservative": True}, "pause_triggered", WARNING, PAUSE, PAUSE, False),
    (3, {"failure": "timeout_inference"}, "timeout_inference", WARNING, PAUSE, PAUSE, False),
    (4, {"metadata_timed_out": True}, "timeout_urza", WARNING, NONE, NONE, False),
    (5, {"quarantine_only": True}, "bp_quarantine", CRITICAL, PAUSE, PAUSE, True),
    (5, {"blueprint_risk": 0.8}, "bp_quarantine", CRITICAL, PAUSE, PAUSE, True),
    (5, {"host_risk": 0.8}, "bp_quarantine", CRITICAL, PAUSE, PAUSE, True),
    (5, {"blueprint_risk": 0.5}, "blueprint_risk", WARNING, OPTIMIZER, None, False),
    (6, {"sheet_present": True}, "bsds_present", INFO, NONE, NONE, False),
    (6, {"handling_class": HandlingClass.QUARANTINE}, "bsds_handling_quarantine", CRITICAL, PAUSE, PAUSE, True),
    (6, {"hazard_band": HazardBand.CRITICAL}, "bsds_hazard_critical", CRITICAL, PAUSE, PAUSE, True),
    (6, {"hazard_band": HazardBand.HIGH}, "bsds_hazard_high", WARNING, OPTIMIZER, NONE, False),
    (7, {"loss_delta": 0.15 + JUST}, "loss_spike", WARNING, PAUSE, PAUSE, True),
    (7, {"loss_delta": 0.075 + JUST}, "loss_warning", WARNING, OPTIMIZER, None, False),
    (8, {"hook_latency_ms": 50 + JUST}, "hook_budget", WARNING, PAUSE, PAUSE, False),
    (9, {"step_latency_ms": 120 + JUST}, "step_latency_high", WARNING, PAUSE, PAUSE, False),
    (10, {"kasmina_apply_ms": 30 + JUST}, "kasmina_apply_slow", WARNING, OPTIMIZER, NONE, False),
    (11, {"kasmina_finalize_ms": 30 + JUST}, "kasmina_finalize_slow", WARNING, OPTIMIZER, NONE, False),
    (12, {"isolation_violations": 1.0}, "isolation_violations", WARNING, PAUSE, PAUSE, False),
    (13, {"loss_volatility": 0.1125 + JUST}, "loss_volatility_high", WARNING, OPTIMIZER, NONE, False),
    (14, {"gradient_variance": 1 + JUST}, "grad_variance_high", WARNING, OPTIMIZER, None, False),
    (15, {"gradient_conflict_rate": 0.5 + JUST}, "grad_conflict_high", WARNING, OPTIMIZER, None, False),
    (16, {"optimizer_lr": 0.0, "loss_delta": 0.1}, "optimizer_hint", WARNING, OPTIMIZER, NONE, False),
    (17, {"gpu_util_percent": 95.0, "gpu_free_gb": 0.2}, "device_pressure_high", WARNING, PAUSE, NONE, False),
    (17, {"cpu_util_percent": 95.0}, "cpu_pressure_high", WARNING, OPTIMIZER, None, False),
    (18, {"coverage_average": 0.1}, "degraded_inputs", CRITICAL, PAUSE, PAUSE, False),
    (18, {"coverage_average": 0.3 - JUST}, "degraded_inputs", WARNING, NONE, NONE, False),
    (19, {"compile_reason": "device_not_cuda"}, "compile_disabled_cpu", INFO, NONE, NONE, False),
    (19, {"compile_reason": "cuda_unavailable"}, "compile_disabled", INFO, NONE, NONE, False),
    (19, {"compile_reason": "compile_error"}, "compile_disabled", WARNING, NONE, NONE, False),
    (19, {"compile_reason": "runtime_failure"}, "compile_disabled", WARNING, NONE, NONE, False),
    (0, {"loss_finite": False}, "loss_not_finite", CRITICAL, PAUSE, PAUSE, True),
    (0, {"failure": "breaker_open"}, "breaker_open", WARNING, PAUSE, PAUSE, True),
    (0, {"failure": "model_missing"}, "model_missing", ERROR, PAUSE, PAUSE, False),
    (0, {"failure": "inference_failed"}, "inference_failed", ERROR, PAUSE, PAUSE, False),
    (0, {"failure": "graph_too_large"}, "graph_too_large", ERROR, PAUSE, PAUSE, False),
    (0, {"failure": "overloaded"}, "overloaded", WARNING, PAUSE, PAUSE, False),
    (0, {"failure": "non_finite_output"}, "non_finite_output", ERROR, PAUSE, PAUSE, False),
    (0, {"failure": "no_seed_candidates"}, "no_seed_candidates", INFO, PAUSE, PAUSE, False),
    (0, {"failure": "degraded_inputs"}, "degraded_inputs", WARNING, PAUSE, PAUSE, False),
    (0, {"inference_breaker": CircuitBreakerState.OPEN}, "inference_breaker_open", INFO, NONE, NONE, True),
    (0, {"emergency_level": EmergencyLevel.HALT}, "emergency_halt", CRITICAL, PAUSE, PAUSE, True),
    (0, {"emergency_level": EmergencyLevel.CONSERVATIVE}, "emergency_conservative", WARNING, PAUSE, PAUSE, True),
    (0, {"state_age_ms": 60_001.0}, "state_old", WARNING, PAUSE, PAUSE, False),
    (0, {"gap_steps": 1}, "state_gap", INFO, NONE, NONE, False),
    (0, {"stale_packets": 1}, "state_stale", WARNING, NONE, NONE, False),
    (0, {"duplicate_packets": 1}, "state_duplicate", WARNING, NONE, NONE, False),
    (0, {"pauses_seed": True, "pause_quota_spent": True}, "pause_quota_exceeded", WARNING, PAUSE, PAUSE, False),
    (0, {"wants_missing_seed": True}, "no_seed_candidates", INFO, NONE, NONE, False),
]
NAMES = [f"{number}-{event}-{'-'.join(signals)}" for number, signals, event, *_ in FIRES]


def fired(signals: Signals, event: str):
    return next((item for item in assess(signals).fired if item.rule.event == event), None)


@pytest.mark.parametrize(
    ("number", "signals", "event", "level", "on_graft", "otherwise", "enters"), FIRES, ids=NAMES
)
def test_a_rule_fires_at_its_edge(number, signals, event, level, on_graft, otherwise, enters) -> None:
    item = fired(graft(**signals), event)
    assert item is not None
    assert (item.rule.number, item.rule.level, item.action) == (number, level, on_graft)
    assert item.rule.conservative is enters
    elsewhere = fired(Signals(**signals), event)
    assert (elsewhere.action if elsewhere is not None else None) == otherwise


@pytest.mark.parametrize(
    ("signals", "event"),
    [
        ({"risk_score": 0.98 - JUST}, "policy_risk_critical"),
        ({"risk_score": 0.85 - JUST}, "policy_risk_elevated"),
        ({"risk_score": 0.98}, "policy_risk_elevated"),
        ({"blueprint_risk": 0.8 - JUST}, "bp_quarantine"),
        ({"host_risk": 0.8 - JUST}, "bp_quarantine"),
        ({"blueprint_risk": 0.5 - JUST}, "blueprint_risk"),
        ({"blueprint_risk": 0.8}, "blueprint_risk"),
        ({"host_risk": 0.6}, "blueprint_risk"),
        ({"hazard_band": HazardBand.MEDIUM}, "bsds_hazard_high"),
        ({"handling_class": HandlingClass.RESTRICTED}, "bsds_handling_quarantine"),
        ({"loss_delta": 0.15}, "loss_spike"),
        ({"loss_delta": 0.075}, "loss_warning"),
        ({"loss_delta": 0.2}, "loss_warning"),
        ({"hook_latency_ms": 50.0}, "hook_budget"),
        ({"step_latency_ms": 120.0}, "step_latency_high"),
        ({"kasmina_apply_ms": 30.0}, "kasmina_apply_slow"),
        ({"kasmina_finalize_ms": 30.0}, "kasmina_finalize_slow"),
        ({"isolation_violations": 0.0}, "isolation_violations"),
        ({"loss_volatility": 0.1125}, "loss_volatility_high"),
        ({"gradient_variance": 1.0}, "grad_variance_high"),
        ({"gradient_conflict_rate": 0.5}, "grad_conflict_high"),
        ({"optimizer_lr": 0.0, "loss_delta": 0.075}, "optimizer_hint"),
        ({"optimizer_lr": 1e-9, "loss_delta": 0.1}, "optimizer_hint"),
        ({"gpu_util_percent": 95.0, "gpu_free_gb": 0.3}, "device_pressure_high"),
        ({"gpu_util_percent": 94.9, "gpu_free_gb": 0.1}, "device_pressure_high"),
        ({"cpu_util_percent": 99.0, "gpu_util_percent": 95.0, "gpu_free_gb": 0.1}, "cpu_pressure_high"),
        ({"cpu_util_percent": 94.9}, "cpu_pressure_high"),
        ({"coverage_average": 0.3}, "degraded_inputs"),
        ({"emergency_level": EmergencyLevel.ELEVATED}, "emergency_conservative"),
        ({"inference_breaker": CircuitBreakerState.HALF_OPEN}, "inference_breaker_open"),
        ({"conservative": True, "failure": "timeout_inference"}, "pause_triggered"),
        ({"pauses_seed": True}, "pause_quota_exceeded"),
        ({"pause_quota_spent": True}, "pause_quota_exceeded"),
        ({"state_age_ms": 60_000.0}, "state_old"),
    ],
)
def test_a_rule_does_not_fire_short_of_its_edge(signals, event) -> None:
    assert fired(graft(**signals), event) is None


def test_all_nineteen_rows_of_the_documented_engine_are_in_the_table() -> None:
    assert {rule.number for rule in RISK_RULES} == set(range(20))
    assert {number for number, *_ in FIRES} == set(range(20))


def test_every_row_of_the_table_has_its_case() -> None:
    assert len(FIRES) == len(RISK_RULES)


def test_every_documented_reason_code_can_be_given() -> None:
    documented = """no_seed_candidates, conservative_mode, policy_risk_critical, policy_risk_elevated,
        timeout_inference, timeout_urza, bp_quarantine, blueprint_risk, bsds_handling_quarantine,
        bsds_hazard_critical, bsds_hazard_high, loss_spike, loss_warning, hook_budget, step_latency_high,
        kasmina_apply_slow, kasmina_finalize_slow, isolation_violation, loss_volatility_high, grad_variance_high,
        grad_conflict_high, optimizer_hint, device_pressure_high, cpu_pressure_high, degraded_inputs"""
    given = {assess(graft(**signals)).reason for _, signals, *_ in FIRES}
    assert {code.strip() for code in documented.split(",")} <= given
    assert assess(Signals()).reason == "policy"


def test_rules_name_only_signals_and_thresholds_that_exist() -> None:
    signals = {item.name for item in fields(Signals)}
    thresholds = {item.name for item in fields(RiskThresholds)}
    conditions = [condition for rule in RISK_RULES for condition in (*rule.when, *rule.unless)]
    assert {condition.signal for condition in conditions} <= signals
    assert {signal for rule in RISK_RULES for _, signal in rule.attributes} <= signals
    assert {condition.threshold for condition in conditions} - {""} == thresholds


def test_what_nobody_measured_fires_nothing() -> None:
    assert assess(graft()).fired == ()


@pytest.mark.parametrize("name", [item.name for item in fields(Signals) if "float | None" in str(item.type)])
def test_a_signal_that_is_not_a_number_fires_nothing(name: str) -> None:
    assert assess(graft(**{name: math.nan})).fired == ()


def test_an_infinite_latency_is_above_every_threshold() -> None:
    assert assess(Signals(hook_latency_ms=math.inf)).reason == "hook_budget"


def test_the_most_severe_action_wins_whatever_the_order() -> None:
    both = assess(graft(risk_score=0.9, hook_latency_ms=51.0))
    assert (both.action, both.reason) == (PAUSE, "hook_budget")


def test_among_equals_the_first_of_the_table_gives_the_reason_and_all_are_recorded() -> None:
    found = assess(graft(hook_latency_ms=51.0, loss_delta=0.2, conservative=True))
    assert found.reason == "loss_spike"
    assert [item.rule.event for item in found.fired] == ["loss_spike", "hook_budget", "pause_triggered"]


def test_a_cause_is_named_before_the_mode_it_led_to() -> None:
    assert assess(Signals(conservative=True, step_latency_ms=200.0)).reason == "step_latency_high"
    assert assess(Signals(conservative=True)).reason == "conservative_mode"


def test_a_failure_is_named_before_everything_that_follows_from_it() -> None:
    assert assess(Signals(failure="inference_failed", coverage_average=0.0)).reason == "inference_failed"


def test_a_fired_rule_tells_its_value_and_threshold() -> None:
    item = fired(Signals(hook_latency_ms=75.0), "hook_budget")
    assert item is not None
    assert (item.value, item.threshold) == (75.0, 50.0)


def test_thresholds_can_be_set() -> None:
    assert assess(Signals(hook_latency_ms=75.0), RiskThresholds(hook_latency_ms=80.0)).fired == ()


def test_a_cull_is_not_held_back_by_rules_about_grafts() -> None:
    """Removing a kernel is what a rising loss calls for."""
    assert assess(Signals(grafts=False, loss_delta=0.1, gradient_variance=5.0)).action is NONE


@pytest.mark.parametrize(
    ("signals", "cause"),
    [
        ({"loss_delta": 0.2}, "loss_spike"),
        ({"inference_breaker": CircuitBreakerState.OPEN}, "breaker_open"),
        ({"hook_latency_ms": 99.0}, ""),
        ({"failure": "timeout_inference"}, ""),
    ],
)
def test_what_enters_conservative_mode(signals, cause) -> None:
    assert assess(Signals(**signals)).conservative_cause == cause


def test_a_step_is_clean_unless_something_but_the_mode_itself_paused_it() -> None:
    assert assess(Signals(conservative=True)).clean
    assert assess(graft(conservative=True, loss_delta=0.1)).clean
    assert not assess(Signals(conservative=True, hook_latency_ms=99.0)).clean


def test_events_carry_the_documented_attributes() -> None:
    def attributes(event: str, **signals):
        given = graft(**signals)
        return next(e for e in events_of(assess(given), given) if e.name == event).attributes

    assert attributes("policy_risk_signal", risk_score=0.5, risk_index=2) == {"score": "0.5", "index": "2"}
    assert attributes("timeout_inference", failure="timeout_inference", budget_ms=45.0) == {"budget_ms": "45"}
    assert attributes("loss_spike", loss_delta=0.25) == {"delta": "0.25"}
    assert attributes("bp_quarantine", quarantine_only=True, blueprint_tier=BlueprintTier.HIGH_RISK) == {
        "tier": "HIGH_RISK"
    }
    assert attributes("bsds_present", sheet_present=True, hazard_band=HazardBand.HIGH) == {
        "hazard": "HIGH",
        "risk": "unknown",
        "provenance": "UNSPECIFIED",
    }
    assert attributes("pause_triggered", conservative=True, conservative_reason="loss_spike") == {
        "reason": "loss_spike"
    }
    assert attributes("compile_disabled_cpu", compile_reason="device_not_cuda", compile_device="cpu") == {
        "reason": "device_not_cuda",
        "device": "cpu",
    }
    assert attributes("optimizer_hint", optimizer_lr=0.0, loss_delta=0.1) == {"lr": "0", "loss_delta": "0.1"}
    missing = tuple(f"k{i}" for i in range(20))
    assert attributes("degraded_inputs", coverage_average=0.05, missing_features=missing) == {
        "coverage_avg": "0.05",
        "missing_features": ",".join(missing[:16]),
    }


@pytest.mark.parametrize(
    ("events", "priority"),
    [
        ([], MessagePriority.NORMAL),
        ([("bsds_hazard_high", WARNING), ("conservative_entered", WARNING)], MessagePriority.NORMAL),
        ([("loss_spike", WARNING)], MessagePriority.HIGH),
        ([("inference_failed", ERROR)], MessagePriority.HIGH),
        ([("loss_spike", INFO)], MessagePriority.NORMAL),
        ([("loss_spike", WARNING), ("bp_quarantine", CRITICAL)], MessagePriority.CRITICAL),
    ],
)
def test_priority_follows_the_events(events, priority) -> None:
    assert priority_of(PolicyEvent(name, level) for name, level in events) is priority


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_spike": math.nan}, "loss_spike is nan"),
        ({"loss_warning": 0.2}, r"loss_warning 0.2 is above loss_spike 0.15"),
        ({"coverage_critical": 0.4}, "coverage_critical 0.4 is above coverage_warn 0.3"),
        ({"risk_score_elevated": 0.99}, "risk_score_elevated"),
        ({"blueprint_risk_elevated": 0.9}, "blueprint_risk_elevated"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        RiskThresholds(**given)
    assert replace(RiskThresholds(), loss_spike=0.3).loss_spike == 0.3
