"""Decisions: legal, bounded, explained, and a harmless pause where the network cannot be asked."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from schemas.enums import (
    CommandType,
    SeedLifecycleStage,
    SeedOperation,
)
from tamiyo_stream.policy.actions import ACTION_TABLE, Action
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.selection import expected_severity
from tests.policy.samples import STAMP, facts, kernel, preferring, seed

GRAFT, OPTIMIZER, PAUSE, CULL, HOLD, FIRST_KERNEL = 0, 1, 2, 5, 7, 8


def test_the_action_table_is_the_designs() -> None:
    assert [slot.index for slot in ACTION_TABLE] == list(range(32))
    assert [slot.action for slot in ACTION_TABLE[:8]] == [
        Action.GRAFT,
        Action.OPTIMIZER,
        Action.PAUSE,
        Action.BREAKER_OPEN,
        Action.BREAKER_CLOSE,
        Action.CULL,
        Action.RESUME,
        Action.HOLD,
    ]
    assert [slot.kernel for slot in ACTION_TABLE[8:]] == list(range(24))


def test_a_graft_takes_the_best_scored_dormant_seed_and_kernel() -> None:
    answer = preferring(
        GRAFT, seeds=3, kernels=2, seed_scores=np.array([9.0, 1.0, 2.0]), blueprint_scores=np.array([0.0, 1.0])
    )
    seeds = [seed("busy", SeedLifecycleStage.TRAINING), seed("a"), seed("b")]
    command = decide(facts(seeds=seeds, kernels=[kernel("k0"), kernel("k1")]), answer, STAMP).command
    assert command.command_type is CommandType.SEED
    assert command.target_seed_id == "b"
    assert command.seed_operation is not None
    assert command.seed_operation.operation is SeedOperation.GERMINATE
    assert command.seed_operation.blueprint_id == "k1"
    assert command.annotations["selected_seed"] == "b"


def test_a_kernel_slot_germinates_that_kernel() -> None:
    answer = preferring(FIRST_KERNEL + 1, seeds=1, kernels=2)
    command = decide(facts(seeds=[seed("a")], kernels=[kernel("k0"), kernel("k1")]), answer, STAMP).command
    assert command.seed_operation is not None
    assert command.seed_operation.blueprint_id == "k1"


@pytest.mark.parametrize(
    "stage", [stage for stage in SeedLifecycleStage if stage is not SeedLifecycleStage.DORMANT]
)
def test_a_seed_that_is_not_dormant_is_never_germinated(stage: SeedLifecycleStage) -> None:
    answer = preferring(GRAFT, FIRST_KERNEL, HOLD, seeds=1, kernels=1)
    command = decide(facts(seeds=[seed("a", stage)], kernels=[kernel("k")]), answer, STAMP).command
    assert command.command_type is CommandType.PAUSE
    assert command.seed_operation is None


def test_culling_takes_the_least_wanted_seed_that_may_be_culled() -> None:
    answer = preferring(CULL, seeds=3, seed_scores=np.array([-9.0, 1.0, 0.5]))
    seeds = [seed("dormant"), seed("a", SeedLifecycleStage.TRAINING), seed("b", SeedLifecycleStage.BLENDING)]
    command = decide(facts(seeds=seeds), answer, STAMP).command
    assert command.target_seed_id == "b"
    assert command.seed_operation is not None
    assert command.seed_operation.operation is SeedOperation.CULL


def test_a_refused_kernel_is_not_chosen_even_where_the_network_prefers_it() -> None:
    answer = preferring(FIRST_KERNEL, GRAFT, seeds=1, kernels=2, blueprint_scores=np.array([9.0, 0.0]))
    kernels = [kernel("bad", quarantine_only=True), kernel("good")]
    command = decide(facts(seeds=[seed("a")], kernels=kernels), answer, STAMP).command
    assert command.seed_operation is not None
    assert command.seed_operation.blueprint_id == "good"


def test_a_quarantined_seed_is_left_alone() -> None:
    answer = preferring(GRAFT, CULL, HOLD, seeds=1, kernels=1)
    command = decide(facts(seeds=[seed("a", quarantine_only=True)], kernels=[kernel("k")]), answer, STAMP).command
    assert command.command_type is CommandType.PAUSE


def test_the_blending_method_is_one_that_the_seed_allows_with_its_wire_index() -> None:
    answer = preferring(
        GRAFT,
        seeds=1,
        kernels=1,
        blending_method_logits=np.array([9.0, 1.0, 2.0, 3.0]),
        seed_schedule=np.array([[0.8, -0.6]]),
    )
    seeds = [seed("a", allowed_blending_methods=["cosine", "warmup_hold"])]
    command = decide(facts(seeds=seeds, kernels=[kernel("k")]), answer, STAMP).command
    assert command.seed_operation is not None
    assert command.annotations["blending_method"] == "warmup_hold"
    assert command.seed_operation.parameters["blending_method_index"] == 2.0
    assert command.seed_operation.parameters["blending_schedule_start"] == pytest.approx(0.2)
    assert command.seed_operation.parameters["blending_schedule_end"] == pytest.approx(0.9)
    assert command.annotations["blending_schedule_units"] == "fraction_0_1"


def test_a_learning_rate_change_is_relative_and_bounded_by_the_setting() -> None:
    answer = preferring(OPTIMIZER, policy_params=np.full((32, 4), -1.0, dtype=np.float32))
    command = decide(facts(), answer, STAMP).command
    assert command.optimizer_adjustment is not None
    assert command.optimizer_adjustment.optimizer_id == "adamw"
    assert command.optimizer_adjustment.hyperparameters == {"lr_change": -0.1}


def test_without_a_known_optimizer_it_is_not_adjusted() -> None:
    command = decide(facts(optimizers=()), preferring(OPTIMIZER, HOLD), STAMP).command
    assert command.optimizer_adjustment is None


def test_a_loss_that_is_not_a_number_pauses_without_target_and_says_so() -> None:
    decision = decide(facts(training_loss=math.nan), preferring(OPTIMIZER), STAMP)
    assert decision.reason == "loss_not_finite"
    assert decision.command.command_type is CommandType.PAUSE
    assert decision.command.target_seed_id == ""
    assert decision.command.annotations["risk_reason"] == "loss_not_finite"


def test_a_failed_inference_pauses_without_target_and_says_so() -> None:
    decision = decide(facts(), None, STAMP, failure="inference_failed")
    assert decision.command.command_type is CommandType.PAUSE
    assert decision.command.annotations["risk_reason"] == "inference_failed"
    assert decision.command.annotations["feature_coverage"] == "0.500"


def test_risk_is_expected_severity_not_confidence() -> None:
    certain_of_the_lowest = np.array([50.0, 0, 0, 0, 0], dtype=np.float32)
    assert expected_severity(certain_of_the_lowest) == pytest.approx(0.0, abs=1e-6)
    assert expected_severity(certain_of_the_lowest[::-1]) == pytest.approx(1.0, abs=1e-6)
    assert expected_severity(np.zeros(5, dtype=np.float32)) == pytest.approx(0.5)


def test_the_command_answers_its_packet_and_names_what_it_supersedes() -> None:
    command = decide(facts(superseded=["p7", "p8"]), preferring(HOLD), STAMP).command
    assert (command.run_id, command.packet_id, command.global_step) == ("r", "p", 9)
    assert command.superseded_packet_ids == ["p7", "p8"]
    assert json.loads(command.annotations["coverage_map"]) == {"layer.weight_norm": 0.5}
    assert json.loads(command.annotations["coverage_types"]) == {"node.layer": 0.5}


def test_the_why_names_the_layers_with_most_attention() -> None:
    command = decide(facts(), preferring(HOLD), STAMP).command
    assert json.loads(command.annotations["why"])["layers"] == pytest.approx({"l0": 0.5, "l2": 0.3, "l1": 0.2})
