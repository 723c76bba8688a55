"""The promise of the decision core: no state whatsoever yields an illegal, unbounded or inconsistent command."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import encode_payload
from schemas.enums import LEGAL_TRANSITIONS, CircuitBreakerState, CommandType, SeedLifecycleStage, SeedOperation
from schemas.tamiyo import PAYLOAD_OWNER, AdaptationCommand
from tamiyo_stream.policy.blending import usable_methods
from tamiyo_stream.policy.decision import Decision, decide
from tamiyo_stream.policy.facts import Guard, PolicyProfile, StepFacts
from tamiyo_stream.policy.field_reports import decision_outcome, decision_report
from tamiyo_stream.policy.legality import refusal_of
from tamiyo_stream.policy.parameters import COMMAND_PARAMETERS
from tamiyo_stream.policy.rules import Downgrade
from tests.policy import random_states as draw

STATES = 5_000
RUNNING = {"TRAINING", "BLENDING", "SHADOWING", "PROBATIONARY"}


@given(st.integers(0, 2**63))
@settings(max_examples=STATES, deadline=None)
def test_no_state_whatsoever_yields_an_illegal_command(entropy: int) -> None:
    chance = draw.Chance(entropy)
    facts, guard, profile = draw.random_facts(chance), draw.random_guard(chance), draw.random_profile(chance)
    answer = draw.random_heads(chance, len(facts.seeds), len(facts.kernels)) if not chance.odd(0.1) else None
    stamp = draw.random_stamp(chance)
    decision = decide(facts, answer, stamp, failure=draw.random_failure(chance), guard=guard, profile=profile)
    command = decision.command
    assert encode_payload(command)  # reads it back: the wire's contract holds
    payload_fits(command)
    what_was_risky_is_not_issued(decision, guard)
    everything_is_told(decision, facts)
    if command.seed_operation is not None:
        seed_operation_is_legal(command, facts, profile)
    elif command.circuit_breaker is not None:
        breaker_command_is_legal(command, guard)
    elif command.command_type is CommandType.PAUSE:
        pause_is_legal(command, facts, guard, profile)
    if command.optimizer_adjustment is not None:
        change = command.optimizer_adjustment.hyperparameters["lr_change"]
        assert -0.1 <= change <= (0.0 if decision.downgraded else 0.1)
        assert command.optimizer_adjustment.optimizer_id in facts.optimizer_families
    report = decision_report(decision, facts, stamp)
    assert encode_payload(report)
    assert not (decision.downgraded and decision_outcome(decision).name == "SUCCESS")


def payload_fits(command: AdaptationCommand) -> None:
    payloads = {name for name in PAYLOAD_OWNER if getattr(command, name) is not None}
    assert payloads == {name for name, owner in PAYLOAD_OWNER.items() if owner is command.command_type}
    if command.command_type is not CommandType.SEED:
        absent = {"selected_blueprint", "blending_method", "blend_mode", "alpha_vec"}
        assert not absent & set(command.annotations)


def what_was_risky_is_not_issued(decision: Decision, guard: Guard) -> None:
    asked = max((item.action for item in decision.assessment.fired), default=Downgrade.NONE)
    if asked is Downgrade.PAUSE or guard.conservative.active:
        assert decision.command.command_type is CommandType.PAUSE
        assert decision.command.target_seed_id == ""
    if asked is Downgrade.OPTIMIZER:
        assert decision.command.seed_operation is None


def everything_is_told(decision: Decision, facts: StepFacts) -> None:
    notes = decision.command.annotations
    assert notes["risk_reason"] == decision.reason != ""
    assert json.loads(notes["coverage_map"]) == facts.coverage_keys
    told = json.loads(notes["why"])
    assert [rule["rule"] for rule in told["rules"]] == [item.rule.event for item in decision.assessment.fired]
    assert {event.name for event in decision.events} >= {rule["rule"] for rule in told["rules"]}


def seed_operation_is_legal(command: AdaptationCommand, facts: StepFacts, profile: PolicyProfile) -> None:
    operation = command.seed_operation
    assert operation is not None
    target = next(s for s in facts.seeds if s.seed_id == command.target_seed_id)
    assert not target.quarantine_only
    grafts = operation.operation is SeedOperation.GERMINATE
    wanted = SeedLifecycleStage.GERMINATED if grafts else SeedLifecycleStage.CULLED
    assert wanted in LEGAL_TRANSITIONS[target.stage]
    if not grafts:
        assert operation.parameters == {}
        return
    kernel = next(k for k in facts.kernels if k.blueprint_id == operation.blueprint_id)
    unsafe = kernel.blueprint_id in facts.safety_failures
    assert refusal_of(kernel, facts.sheets.get(kernel.blueprint_id), unsafe=unsafe) is None
    bounds = kernel.descriptor.allowed_parameters if kernel.descriptor is not None else {}
    for name, value in operation.parameters.items():
        assert math.isfinite(value)
        fixed = COMMAND_PARAMETERS.get(name)
        low, high = (fixed.low, fixed.high) if fixed else (bounds[name].min_value, bounds[name].max_value)
        assert low <= value <= high
    parameters = operation.parameters
    assert parameters["blending_schedule_start"] <= parameters["blending_schedule_end"]
    assert int(parameters["blending_method_index"]) in usable_methods(
        target.allowed_blending_methods, facts.host_blending_methods
    )
    assert ("blend_mode" in command.annotations) is profile.blend_mode.enabled


def breaker_command_is_legal(command: AdaptationCommand, guard: Guard) -> None:
    assert command.circuit_breaker is not None
    assert not guard.kernel_breaker_held
    desired = command.circuit_breaker.desired_state
    assert desired in {CircuitBreakerState.OPEN, CircuitBreakerState.CLOSED}
    assert guard.kernel_breaker not in {desired, CircuitBreakerState.UNKNOWN}


def pause_is_legal(command: AdaptationCommand, facts: StepFacts, guard: Guard, profile: PolicyProfile) -> None:
    resumes = command.annotations.get("resume") == "true"
    if not command.target_seed_id:
        assert not resumes
        return
    target = next(s for s in facts.seeds if s.seed_id == command.target_seed_id)
    assert target.stage.name in RUNNING
    assert target.metrics["paused"] == float(resumes)
    if not resumes:
        epoch = facts.packet.current_epoch
        epoch = epoch if epoch is not None else guard.last_epoch or 0
        assert guard.pauses.epoch != epoch or guard.pauses.used < profile.pause_quota
        assert profile.pause_quota > 0
