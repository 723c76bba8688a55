"""Which slots are legal, and why not the others."""

from __future__ import annotations

import math

import pytest

from schemas.enums import (
    BlueprintTier,
    CircuitBreakerState,
    CompileStatus,
    HandlingClass,
    HazardBand,
    SeedLifecycleStage,
)
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint, CompileReport
from tamiyo_stream.policy.actions import ACTION_TABLE, CONTROL_SLOTS, Action
from tamiyo_stream.policy.legality import (
    QUARANTINE_RISK,
    Candidates,
    Surroundings,
    find_candidates,
    legal_slots,
    refusal_of,
    slot_refusal,
)
from tests.policy.samples import kernel, seed

STAGE = SeedLifecycleStage


def candidates(seeds=(), kernels=(), sheets=None, **around) -> Candidates:
    return find_candidates(seeds, kernels, sheets or {}, Surroundings(**{"has_optimizer": True, **around}))


def refusal(action: Action, found: Candidates) -> str:
    return slot_refusal(CONTROL_SLOTS[action], found)


def germinate(position: int, found: Candidates) -> str:
    return slot_refusal(ACTION_TABLE[8 + position], found)


@pytest.mark.parametrize(
    ("descriptor", "sheet", "reason"),
    [
        ({"quarantine_only": True}, {}, "bp_quarantine"),
        ({"risk": QUARANTINE_RISK}, {}, "bp_quarantine"),
        ({"risk": math.nan}, {}, "bp_quarantine"),
        ({"risk": None}, {}, None),
        ({"risk": 0.1}, {"risk_score": 0.85}, "bp_quarantine"),
        ({"risk": 0.9}, {"risk_score": 0.1}, None),
        ({"approval_required": True}, {}, "approval_required"),
        ({"approval_required": True, "approved": True}, {}, None),
        ({"tier": BlueprintTier.EXPERIMENTAL}, {}, "tier_experimental"),
        ({"tier": BlueprintTier.EXPERIMENTAL, "approved": True}, {}, None),
        ({"tier": BlueprintTier.HIGH_RISK}, {}, "tier_high_risk"),
        ({"tier": BlueprintTier.UNSPECIFIED}, {}, None),
        ({}, {"handling_class": HandlingClass.QUARANTINE}, "bsds_handling_quarantine"),
        ({}, {"hazard_band": HazardBand.CRITICAL, "risk_score": 0.0}, "bsds_hazard_critical"),
    ],
)
def test_kernels_are_refused_with_their_reason(descriptor, sheet, reason) -> None:
    issued = BlueprintSafetySheet(blueprint_id="k", issued_at=1, **sheet) if sheet else None
    assert refusal_of(kernel("k", **descriptor), issued) == reason


def test_a_kernel_that_could_not_be_evaluated_is_refused_unless_an_older_sheet_is_in_force() -> None:
    sheet = BlueprintSafetySheet(blueprint_id="k", issued_at=1)
    assert refusal_of(kernel("k"), None, unsafe=True) == "safety_unknown"
    assert refusal_of(kernel("k"), sheet, unsafe=True) is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CompileStatus.FAILED, "compile_failed"),
        (CompileStatus.EAGER_FALLBACK, None),
        (CompileStatus.COMPILED, None),
    ],
)
def test_a_kernel_that_does_not_compile_is_refused(status, reason) -> None:
    given = kernel("k")
    compiled = Blueprint(
        blueprint_id="k",
        blueprint_version="1",
        issued_at=1,
        descriptor=given.descriptor,
        compiled=CompileReport(status=status),
    )
    assert refusal_of(compiled, None) == reason


def test_a_kernel_without_descriptor_is_refused() -> None:
    assert refusal_of(Blueprint(blueprint_id="k", blueprint_version="1", issued_at=1), None) == "no_descriptor"


def test_the_quarantine_threshold_can_be_set() -> None:
    assert refusal_of(kernel("k", risk=0.6), None, quarantine_risk=0.6) == "bp_quarantine"
    assert candidates(kernels=[kernel("k", risk=0.6)], quarantine_risk=0.6).kernels == ()


@pytest.mark.parametrize("stage", STAGE)
def test_stages_decide_what_a_seed_may_be_given(stage) -> None:
    found = candidates([seed("a", stage)], [kernel("k")])
    cullable = {STAGE.GERMINATED, STAGE.TRAINING, STAGE.BLENDING, STAGE.SHADOWING, STAGE.PROBATIONARY}
    assert (refusal(Action.GRAFT, found) == "") is (stage is STAGE.DORMANT)
    assert (germinate(0, found) == "") is (stage is STAGE.DORMANT)
    assert (refusal(Action.CULL, found) == "") is (stage in cullable)


def test_without_a_seed_the_reason_is_no_seed_candidates() -> None:
    found = candidates([], [kernel("k")])
    assert {refusal(Action.GRAFT, found), refusal(Action.CULL, found), germinate(0, found)} == {
        "no_seed_candidates"
    }


def test_a_kernel_slot_is_refused_for_its_own_kernel() -> None:
    found = candidates([seed("a")], [kernel("good"), kernel("bad", quarantine_only=True)])
    assert [germinate(position, found) for position in range(3)] == ["", "bp_quarantine", "no_such_kernel"]


def test_without_a_kernel_there_is_no_graft() -> None:
    assert refusal(Action.GRAFT, candidates([seed("a")])) == "no_kernel"


def test_a_seed_held_in_quarantine_is_left_alone() -> None:
    held = [
        seed("a", quarantine_only=True),
        seed("b", STAGE.TRAINING, quarantine_only=True, metrics={"paused": 0.0}),
    ]
    found = candidates(held, [kernel("k")])
    assert (found.germinable, found.cullable, found.pausable) == ((), (), ())


@pytest.mark.parametrize(
    ("methods", "germinable"), [([], ()), (["unheard_of"], ()), (["linear"], (0,)), (None, (0,))]
)
def test_a_seed_that_may_not_blend_is_not_germinated(methods, germinable) -> None:
    assert candidates([seed("a", allowed_blending_methods=methods)]).germinable == germinable


def test_a_host_that_allows_no_method_germinates_no_seed() -> None:
    assert candidates([seed("a")], host_blending_methods=[]).germinable == ()


@pytest.mark.parametrize(
    ("stage", "paused", "pausable", "resumable"),
    [
        (STAGE.TRAINING, 0.0, True, False),
        (STAGE.TRAINING, 1.0, False, True),
        (STAGE.TRAINING, None, False, False),
        (STAGE.TRAINING, math.nan, False, False),
        (STAGE.DORMANT, 0.0, False, False),
        (STAGE.FOSSILIZED, 1.0, False, False),
    ],
)
def test_a_seed_is_paused_and_resumed_only_where_kasmina_says_which_it_is(
    stage, paused, pausable, resumable
) -> None:
    found = candidates([seed("a", stage, metrics={} if paused is None else {"paused": paused})])
    assert bool(found.pausable) is pausable
    assert (refusal(Action.RESUME, found) == "") is resumable


@pytest.mark.parametrize(
    ("state", "may_open", "may_close"),
    [
        (CircuitBreakerState.UNKNOWN, False, False),
        (CircuitBreakerState.CLOSED, True, False),
        (CircuitBreakerState.OPEN, False, True),
        (CircuitBreakerState.HALF_OPEN, True, False),
    ],
)
def test_the_breaker_is_moved_only_where_its_state_is_known(state, may_open, may_close) -> None:
    found = candidates(kernel_breaker=state)
    assert (refusal(Action.BREAKER_OPEN, found) == "") is may_open
    assert (refusal(Action.BREAKER_CLOSE, found) == "") is may_close


def test_without_an_optimizer_it_is_not_adjusted() -> None:
    assert refusal(Action.OPTIMIZER, candidates(has_optimizer=False)) == "no_optimizer"


def test_pause_and_hold_are_always_legal() -> None:
    mask = legal_slots(candidates(has_optimizer=False))
    assert [slot.action for slot in ACTION_TABLE if mask[slot.index]] == [Action.PAUSE, Action.HOLD]
