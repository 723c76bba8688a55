"""What the risk engine makes of decisions: downgrades, failures, the deadline, conservative mode, quotas."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from schemas.enums import (
    CircuitBreakerState,
    CommandType,
    EmergencyLevel,
    HandlingClass,
    HazardBand,
    MessagePriority,
    SeedLifecycleStage,
)
from schemas.tolaria import HardwareContext
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import BlueprintParameterBounds
from tamiyo_stream.policy.blending import BlendMode, BlendModeProfile
from tamiyo_stream.policy.conservative import ConservativeRules
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.facts import CompileFacts, Guard, PolicyProfile
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.policy.thresholds import RiskThresholds
from tamiyo_stream.runs.state import BreakerRecord, ConservativeMode, PauseQuota, RunState
from tests.policy.samples import STAMP, facts, graft_facts, grafting, kernel, preferring, seed

OPTIMIZER, PAUSE, BREAKER_OPEN, BREAKER_CLOSE, RESUME, HOLD = 1, 2, 3, 4, 6, 7
TRAINING = SeedLifecycleStage.TRAINING
SURE_OF_THE_WORST = np.array([0.0, 0.0, 0.0, 0.0, 50.0], dtype=np.float32)
MODE_ON = Guard(conservative=ConservativeMode(active=True, reason="loss_spike", entered_at=STAMP.issued_at))


def sheet(blueprint_id: str, **fields) -> dict[str, BlueprintSafetySheet]:
    return {blueprint_id: BlueprintSafetySheet(blueprint_id=blueprint_id, issued_at=1, **fields)}


def names(decision) -> list[str]:
    return [event.name for event in decision.events]


def test_a_calm_graft_is_issued_as_chosen() -> None:
    decision = decide(graft_facts(), grafting(), STAMP)
    assert (decision.command.command_type, decision.reason, decision.downgraded) == (
        CommandType.SEED,
        "policy",
        False,
    )
    assert decision.priority is MessagePriority.NORMAL


def test_an_elevated_risk_leaves_a_lower_learning_rate_in_place_of_the_graft() -> None:
    params = np.full((32, 4), -1.0, dtype=np.float32)
    decision = decide(graft_facts(loss_delta=0.1), grafting(policy_params=params), STAMP)
    command = decision.command
    assert (command.command_type, decision.reason) == (CommandType.OPTIMIZER, "loss_warning")
    assert command.seed_operation is None
    assert command.target_seed_id == ""
    assert command.optimizer_adjustment is not None
    assert command.optimizer_adjustment.hyperparameters == {"lr_change": -0.1}
    assert command.annotations["policy_action_name"] == "graft"
    assert command.annotations["command_action"] == "optimizer"


@pytest.mark.parametrize("output", [0.0, 1.0])
def test_a_downgrade_that_would_not_lower_the_rate_is_a_pause(output: float) -> None:
    params = np.full((32, 4), output, dtype=np.float32)
    decision = decide(graft_facts(loss_delta=0.1), grafting(policy_params=params), STAMP)
    assert (decision.command.command_type, decision.reason) == (CommandType.PAUSE, "loss_warning")
    assert decision.command.optimizer_adjustment is None


def test_without_an_optimizer_a_downgrade_is_a_pause() -> None:
    decision = decide(graft_facts(loss_delta=0.1, optimizers=()), grafting(), STAMP)
    assert (decision.command.command_type, decision.reason) == (CommandType.PAUSE, "loss_warning")


def test_a_loss_spike_pauses_without_target_and_enters_conservative_mode() -> None:
    decision = decide(graft_facts(loss_delta=0.2), grafting(), STAMP)
    assert (decision.command.command_type, decision.command.target_seed_id) == (CommandType.PAUSE, "")
    assert decision.reason == decision.command.annotations["risk_reason"] == "loss_spike"
    assert (decision.conservative.active, decision.conservative.reason) == (True, "loss_spike")
    assert "conservative_entered" in names(decision)
    assert decision.priority is MessagePriority.HIGH


def test_a_network_that_is_sure_of_the_worst_pauses_critically() -> None:
    decision = decide(graft_facts(), grafting(risk_logits=SURE_OF_THE_WORST), STAMP)
    assert decision.reason == "policy_risk_critical"
    assert decision.priority is MessagePriority.CRITICAL
    sure_of_the_best = SURE_OF_THE_WORST[::-1].copy()
    assert decide(graft_facts(), grafting(risk_logits=sure_of_the_best), STAMP).reason == "policy"


@pytest.mark.parametrize(
    ("fields", "reason", "command_type"),
    [
        ({"handling_class": HandlingClass.QUARANTINE}, "bsds_handling_quarantine", CommandType.PAUSE),
        ({"hazard_band": HazardBand.CRITICAL}, "bsds_hazard_critical", CommandType.PAUSE),
        ({"risk_score": 0.85}, "bp_quarantine", CommandType.PAUSE),
        ({"hazard_band": HazardBand.HIGH}, "bsds_hazard_high", CommandType.OPTIMIZER),
        ({"hazard_band": HazardBand.MEDIUM, "risk_score": 0.6}, "policy", CommandType.SEED),
    ],
)
def test_the_hosts_sheet_gates_grafts_into_it(fields, reason, command_type) -> None:
    given = graft_facts(sheets=sheet("host", **fields), packet={"blueprint_id": "host"})
    decision = decide(given, grafting(), STAMP)
    assert (decision.reason, decision.command.command_type) == (reason, command_type)
    assert decision.command.annotations["bsds_blueprint"] == "host"


@pytest.mark.parametrize(
    ("of_host", "of_kernel"), [(HazardBand.LOW, HazardBand.HIGH), (HazardBand.HIGH, HazardBand.LOW)]
)
def test_of_host_and_kernel_the_worse_sheet_gates(of_host, of_kernel) -> None:
    sheets = {**sheet("host", hazard_band=of_host), **sheet("k", hazard_band=of_kernel)}
    given = graft_facts(sheets=sheets, packet={"blueprint_id": "host"})
    assert decide(given, grafting(), STAMP).reason == "bsds_hazard_high"


def test_the_kernels_sheet_overrides_its_descriptors_risk() -> None:
    risky = [kernel("k", risk=0.6)]
    assert decide(graft_facts(kernels=risky), grafting(), STAMP).reason == "blueprint_risk"
    given = graft_facts(kernels=risky, sheets=sheet("k", risk_score=0.1, hazard_band=HazardBand.LOW))
    decision = decide(given, grafting(), STAMP)
    assert decision.reason == "policy"
    notes = decision.command.annotations
    assert (notes["blueprint_risk"], notes["bsds_risk"], notes["bsds_hazard_band"]) == ("0.10", "0.10", "LOW")


@pytest.mark.parametrize("failure", Failure)
def test_each_failure_pauses_without_target_under_its_own_code(failure) -> None:
    decision = decide(graft_facts(), None, STAMP, failure=failure)
    assert decision.reason == decision.command.annotations["risk_reason"] == failure
    assert (decision.command.command_type, decision.command.target_seed_id) == (CommandType.PAUSE, "")
    assert decision.selection is None
    assert decision.command.annotations["policy_param_delta"] == "0.0"


def test_an_unknown_failure_counts_as_a_failed_inference() -> None:
    assert decide(facts(), None, STAMP, failure="gremlins").reason == "inference_failed"


def test_without_an_answer_and_without_a_failure_the_model_is_missing() -> None:
    assert decide(facts(), None, STAMP).reason == "model_missing"


@pytest.mark.parametrize(
    "head",
    [
        "policy_logits",
        "policy_params",
        "risk_logits",
        "blending_method_logits",
        "seed_scores",
        "seed_schedule",
        "blueprint_scores",
    ],
)
def test_an_answer_that_is_not_finite_is_not_used(head) -> None:
    answer = grafting()
    getattr(answer, head).flat[-1] = np.nan
    decision = decide(graft_facts(), answer, STAMP)
    assert (decision.reason, decision.selection) == ("non_finite_output", None)


def test_a_value_that_is_not_finite_is_not_used() -> None:
    assert decide(graft_facts(), grafting(value_estimate=math.inf), STAMP).reason == "non_finite_output"


def test_a_late_answer_is_discarded() -> None:
    late = replace(STAMP, elapsed_ms=45.1, budget_ms=45.0)
    decision = decide(graft_facts(), grafting(), late)
    assert (decision.reason, decision.command.annotations["policy_action"]) == ("timeout_inference", "timeout")
    assert decision.command.command_type is CommandType.PAUSE
    assert decision.selection is None
    assert "policy_value_estimate" not in decision.command.annotations
    assert decide(graft_facts(), grafting(), replace(late, elapsed_ms=45.0)).reason == "policy"


def test_a_single_late_step_pauses_and_an_open_breaker_enters_conservative_mode() -> None:
    late = replace(STAMP, elapsed_ms=99.0, budget_ms=45.0)
    once = decide(graft_facts(), grafting(), late)
    assert once.priority is MessagePriority.HIGH
    assert not once.conservative.active
    broken = Guard(breakers={"inference": BreakerRecord(state=CircuitBreakerState.OPEN)})
    third = decide(graft_facts(), grafting(), late, guard=broken)
    assert (third.conservative.active, third.conservative.reason) == (True, "breaker_open")


def test_hardly_any_coverage_pauses_critically_and_names_what_is_missing() -> None:
    given = graft_facts(coverage_average=0.1, coverage_keys={"a": 0.0, "b": 0.2})
    decision = decide(given, grafting(), STAMP)
    event = next(event for event in decision.events if event.name == "degraded_inputs")
    assert (decision.reason, decision.priority) == ("degraded_inputs", MessagePriority.CRITICAL)
    assert event.attributes == {"coverage_avg": "0.1", "missing_features": "a"}


def test_low_coverage_warns_and_changes_nothing() -> None:
    decision = decide(graft_facts(coverage_average=0.2), grafting(), STAMP)
    assert (decision.command.command_type, decision.reason) == (CommandType.SEED, "policy")
    assert "degraded_inputs" in names(decision)


def test_in_conservative_mode_every_command_is_a_pause() -> None:
    decision = decide(graft_facts(), grafting(), STAMP, guard=MODE_ON)
    assert (decision.command.command_type, decision.reason) == (CommandType.PAUSE, "conservative_mode")
    assert json.loads(decision.command.annotations["why"])["choice"] == {
        "slot": 0,
        "action": "graft",
        "seed": "a",
        "kernel": "k",
    }


def test_conservative_mode_is_left_by_the_profiles_rules() -> None:
    quick = PolicyProfile(conservative=ConservativeRules(clean_steps=1, cool_down_ms=0))
    decision = decide(graft_facts(), grafting(), STAMP, guard=MODE_ON, profile=quick)
    assert not decision.conservative.active
    assert "conservative_exited" in names(decision)
    assert decision.command.command_type is CommandType.PAUSE  # the step itself was still decided in the mode


def test_conservative_mode_is_not_left_while_a_breaker_is_not_closed() -> None:
    quick = PolicyProfile(conservative=ConservativeRules(clean_steps=1, cool_down_ms=0))
    trying = replace(MODE_ON, breakers={"inference": BreakerRecord(state=CircuitBreakerState.HALF_OPEN)})
    assert decide(graft_facts(), grafting(), STAMP, guard=trying, profile=quick).conservative.active


def test_a_clean_step_in_the_mode_is_counted() -> None:
    assert decide(graft_facts(), grafting(), STAMP, guard=MODE_ON).conservative.clean_steps == 1


@pytest.mark.parametrize(
    ("level", "reason"),
    [
        (EmergencyLevel.ELEVATED, "policy"),
        (EmergencyLevel.CONSERVATIVE, "emergency_conservative"),
        (EmergencyLevel.HALT, "emergency_halt"),
    ],
)
def test_tolarias_emergency_level_counts(level, reason) -> None:
    decision = decide(graft_facts(), grafting(), STAMP, guard=Guard(emergency_level=level))
    assert decision.reason == reason
    assert decision.conservative.active is (reason != "policy")


def test_a_pause_names_the_least_wanted_running_seed_and_spends_the_quota() -> None:
    running = [seed(name, TRAINING, metrics={"paused": 0.0}) for name in ("a", "b")]
    answer = preferring(PAUSE, seeds=2, seed_scores=np.array([1.0, -1.0]), risk_logits=np.zeros(5))
    decision = decide(facts(seeds=running, packet={"current_epoch": 3}), answer, STAMP)
    assert (decision.command.command_type, decision.command.target_seed_id) == (CommandType.PAUSE, "b")
    assert decision.pauses == PauseQuota(epoch=3, used=1)


def test_beyond_the_quota_a_pause_has_no_target_and_says_why() -> None:
    running = [seed("a", TRAINING, metrics={"paused": 0.0})]
    answer = preferring(PAUSE, seeds=1, risk_logits=np.zeros(5))
    spent = Guard(pauses=PauseQuota(epoch=3, used=2), last_epoch=3)
    decision = decide(facts(seeds=running), answer, STAMP, guard=spent, profile=PolicyProfile(pause_quota=2))
    assert (decision.command.target_seed_id, decision.reason) == ("", "pause_quota_exceeded")
    assert decision.pauses == PauseQuota(epoch=3, used=2)
    fresh = decide(
        facts(seeds=running, packet={"current_epoch": 4}),
        answer,
        STAMP,
        guard=spent,
        profile=PolicyProfile(pause_quota=2),
    )
    assert (fresh.command.target_seed_id, fresh.pauses) == ("a", PauseQuota(epoch=4, used=1))


def test_a_resume_is_a_pause_that_says_so() -> None:
    paused = [seed("a", TRAINING, metrics={"paused": 1.0})]
    command = decide(facts(seeds=paused), preferring(RESUME, seeds=1, risk_logits=np.zeros(5)), STAMP).command
    assert (command.command_type, command.target_seed_id, command.annotations["resume"]) == (
        CommandType.PAUSE,
        "a",
        "true",
    )


@pytest.mark.parametrize(
    ("slot", "before", "desired"),
    [
        (BREAKER_OPEN, CircuitBreakerState.CLOSED, CircuitBreakerState.OPEN),
        (BREAKER_CLOSE, CircuitBreakerState.OPEN, CircuitBreakerState.CLOSED),
    ],
)
def test_the_kernel_breaker_is_moved_unless_an_operator_holds_it(slot, before, desired) -> None:
    answer = preferring(slot, HOLD, risk_logits=np.zeros(5))
    command = decide(facts(), answer, STAMP, guard=Guard(kernel_breaker=before)).command
    assert command.circuit_breaker is not None
    assert (command.circuit_breaker.desired_state, command.circuit_breaker.rationale) == (desired, "policy_action")
    held = Guard(kernel_breaker=before, kernel_breaker_held=True)
    assert decide(facts(), answer, STAMP, guard=held).command.circuit_breaker is None


def test_a_pause_for_want_of_a_seed_says_so() -> None:
    decision = decide(facts(kernels=[kernel("k")]), preferring(0, HOLD, kernels=1, risk_logits=np.zeros(5)), STAMP)
    assert decision.reason == "no_seed_candidates"
    assert decision.command.annotations["reason"] == "policy"
    assert json.loads(decision.command.annotations["why"])["preferred"] == {
        "slot": 0,
        "action": "graft",
        "refused": "no_seed_candidates",
    }


def test_another_action_in_place_of_a_graft_without_seed_is_the_networks_own_choice() -> None:
    answer = preferring(0, OPTIMIZER, kernels=1, risk_logits=np.zeros(5))
    decision = decide(facts(kernels=[kernel("k")]), answer, STAMP)
    assert (decision.command.command_type, decision.reason) == (CommandType.OPTIMIZER, "policy")


def test_a_value_that_is_not_finite_is_told_as_unknown() -> None:
    given = graft_facts(packet={"training_metrics": {"hook_latency_ms": math.inf}})
    told = json.loads(decide(given, grafting(), STAMP).command.annotations["why"])
    assert next(rule for rule in told["rules"] if rule["rule"] == "hook_budget")["value"] is None


def test_the_why_names_seeds_and_fired_rules_with_value_and_threshold() -> None:
    answer = grafting(seeds=2, seed_attention=np.array([0.25, 0.75], dtype=np.float32))
    given = graft_facts(seeds=[seed("a"), seed("b")], packet={"training_metrics": {"hook_latency_ms": 80.0}})
    told = json.loads(decide(given, answer, STAMP).command.annotations["why"])
    assert told["seeds"] == {"b": 0.75, "a": 0.25}
    assert {
        "rule": "hook_budget",
        "signal": "hook_latency_ms",
        "value": 80.0,
        "threshold": 50.0,
        "action": "pause",
    } in told["rules"]


def test_the_packets_own_metric_counts_before_what_was_reported_beside_it() -> None:
    beside = {"hook_latency_ms": 80.0}
    assert decide(graft_facts(telemetry=beside), grafting(), STAMP).reason == "hook_budget"
    own = {"training_metrics": {"hook_latency_ms": 10.0}}
    assert decide(graft_facts(telemetry=beside, packet=own), grafting(), STAMP).reason == "policy"


def test_the_hardware_context_speaks_for_the_device_where_metrics_do_not() -> None:
    def on(device: str, **fields):
        hardware = HardwareContext(device_type=device, utilization_percent=99.0, **fields)
        return decide(graft_facts(packet={"hardware_context": hardware}), grafting(), STAMP).reason

    assert on("cuda", available_memory_gb=0.1) == "device_pressure_high"
    assert on("cuda", available_memory_gb=8.0) == "policy"
    assert on("cpu") == "cpu_pressure_high"


def test_a_downgraded_graft_still_tells_which_sheet_stopped_it() -> None:
    given = graft_facts(sheets=sheet("k", hazard_band=HazardBand.HIGH))
    notes = decide(given, grafting(), STAMP).command.annotations
    assert (notes["bsds_blueprint"], notes["bsds_hazard_band"]) == ("k", "HIGH")
    assert "selected_blueprint" not in notes


def test_thresholds_of_the_profile_count() -> None:
    profile = PolicyProfile(thresholds=RiskThresholds(loss_spike=0.5))
    assert decide(graft_facts(loss_delta=0.2), grafting(), STAMP, profile=profile).reason == "loss_warning"


def test_the_blend_mode_goes_with_grafts_alone() -> None:
    profile = PolicyProfile(blend_mode=BlendModeProfile(enabled=True, mode=BlendMode.CONFIDENCE))
    graft = decide(graft_facts(), grafting(), STAMP, profile=profile).command
    assert graft.annotations["blend_mode"] == "CONFIDENCE"
    paused = decide(graft_facts(loss_delta=1.0), grafting(), STAMP, profile=profile).command
    assert "blend_mode" not in paused.annotations


def test_full_coverage_maps_travel_whatever_their_size() -> None:
    keys = {f"layer.feature_{i}": 0.5 for i in range(500)}
    command = decide(graft_facts(coverage_keys=keys), grafting(), STAMP).command
    assert json.loads(command.annotations["coverage_map"]) == keys


def test_manifest_compile_reason_and_breaker_scores_are_annotated() -> None:
    given = graft_facts(feature_manifest="m" * 64, compiled=CompileFacts("device_not_cuda", "cpu"))
    decision = decide(given, grafting(), STAMP)
    notes = decision.command.annotations
    assert (notes["feature_manifest"], notes["policy_compile_reason"]) == ("m" * 64, "device_not_cuda")
    assert (notes["breaker_open_score"], notes["breaker_close_score"]) == ("0.5000", "0.5000")
    assert "compile_disabled_cpu" not in names(decision)  # reported once, where it is due
    due = graft_facts(compiled=CompileFacts("device_not_cuda", "cpu", report_due=True))
    assert "compile_disabled_cpu" in names(decide(due, grafting(), STAMP))


def test_a_germination_carries_the_kernels_parameters_within_their_bounds() -> None:
    bounded = kernel("k", allowed_parameters={"gain": BlueprintParameterBounds(min_value=2.0, max_value=4.0)})
    params = np.zeros((32, 4), dtype=np.float32)
    operation = decide(
        graft_facts(kernels=[bounded]), grafting(policy_params=params), STAMP
    ).command.seed_operation
    assert operation is not None
    assert (operation.parameters["gain"], operation.parameters["alpha"]) == (3.0, 0.0)


def test_the_guard_is_read_from_the_runs_state() -> None:
    run = RunState(run_id="r", emergency_level=EmergencyLevel.HALT, last_epoch=4)
    run.breakers = {
        "inference": BreakerRecord(state=CircuitBreakerState.OPEN),
        "kasmina": BreakerRecord(state=CircuitBreakerState.HALF_OPEN, operator_hold=True),
    }
    guard = Guard.of(run)
    assert (guard.kernel_breaker, guard.kernel_breaker_held) == (CircuitBreakerState.HALF_OPEN, True)
    assert (guard.emergency_level, guard.last_epoch, set(guard.breakers)) == (
        EmergencyLevel.HALT,
        4,
        {"inference"},
    )
    assert not guard.breakers_closed
    assert Guard.of(RunState(run_id="r")).breakers_closed


def test_deciding_changes_nothing_that_it_was_given() -> None:
    guard = Guard(conservative=ConservativeMode(active=True, reason="x"), pauses=PauseQuota(epoch=1, used=1))
    decide(graft_facts(loss_delta=0.5), grafting(), STAMP, guard=guard)
    assert guard.conservative == ConservativeMode(active=True, reason="x")
    assert guard.pauses == PauseQuota(epoch=1, used=1)
