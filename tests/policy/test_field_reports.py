"""Field reports: one per decision, one per window, honest outcomes, ids that a second try repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from schemas.enums import FieldReportOutcome, SeedLifecycleStage
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.facts import IntakeFacts
from tamiyo_stream.policy.field_reports import (
    decision_report,
    report_id,
    synthesised_event,
    window_outcome,
    window_report,
    window_report_id,
)
from tamiyo_stream.policy.windows import ClosedWindow, Ending
from tamiyo_stream.runs.state import ObservationWindow
from tests.policy.samples import STAMP, facts, graft_facts, grafting, preferring, seed

SUCCESS, NEUTRAL = FieldReportOutcome.SUCCESS, FieldReportOutcome.NEUTRAL
REGRESSION, ABORTED = FieldReportOutcome.REGRESSION, FieldReportOutcome.ABORTED


def report(given, answer=None, stamp=STAMP, **options):
    return decision_report(decide(given, answer, stamp, **options), given, stamp)


def metric(name: str, value: float) -> dict[str, dict[str, float]]:
    return {"training_metrics": {name: value}}


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({}, SUCCESS),
        ({"loss_delta": 0.1}, NEUTRAL),  # downgraded to an optimizer adjustment
        ({"loss_delta": 0.2}, REGRESSION),
        ({"training_loss": math.nan}, REGRESSION),
        ({"packet": metric("hook_latency_ms", 99.0)}, REGRESSION),
        ({"packet": metric("kasmina.isolation.violations", 1.0)}, REGRESSION),
        ({"packet": metric("step_latency_ms", 999.0)}, NEUTRAL),
        ({"coverage_average": 0.0}, NEUTRAL),
        ({"intake": IntakeFacts(metadata_timed_out=True)}, NEUTRAL),
    ],
)
def test_the_outcome_follows_from_what_was_decided(given, outcome) -> None:
    assert report(graft_facts(**given), grafting()).outcome is outcome


@pytest.mark.parametrize("failure", ["timeout_inference", "inference_failed", "model_missing", "breaker_open"])
def test_a_decision_without_the_network_is_no_success(failure) -> None:
    assert report(graft_facts(), failure=failure).outcome is NEUTRAL


def test_a_pause_for_want_of_a_seed_is_no_success() -> None:
    assert report(facts(), preferring(0, 7, risk_logits=np.zeros(5))).outcome is NEUTRAL


def test_an_optimizer_adjustment_of_the_networks_own_is_a_success() -> None:
    assert report(facts(), preferring(1, risk_logits=np.zeros(5))).outcome is SUCCESS


def test_a_report_names_command_run_seed_and_kernel() -> None:
    given = report(graft_facts(), grafting())
    assert (given.command_id, given.training_run_id, given.seed_id, given.blueprint_id) == ("c-1", "r", "a", "k")
    assert (given.issued_at, given.tamiyo_policy_version) == (STAMP.issued_at, STAMP.policy_version)


def test_metrics_are_the_decisions_own_loss_delta_first() -> None:
    given = graft_facts(loss_delta=-0.05, packet=metric("hook_latency_ms", 3.0))
    metrics = report(given, grafting(seed_scores=np.array([1.5]))).metrics
    assert next(iter(metrics)) == "loss_delta"
    assert set(metrics) == {
        "loss_delta",
        "param_delta",
        "value_estimate",
        "risk_index",
        "risk_score",
        "selected_seed_score",
        "tamiyo_latency_ms",
        "hook_latency_ms",
        "blending_index",
        "blending_schedule_start",
        "blending_schedule_end",
        "blueprint_risk",
    }
    assert (metrics["loss_delta"], metrics["selected_seed_score"], metrics["hook_latency_ms"]) == (-0.05, 1.5, 3.0)


def test_a_decision_without_the_network_repeats_nothing_of_an_earlier_one() -> None:
    assert set(report(graft_facts(), failure="timeout_inference").metrics) == {"tamiyo_latency_ms"}


def test_what_is_not_finite_is_left_out() -> None:
    assert "loss_delta" not in report(graft_facts(loss_delta=math.nan), grafting()).metrics


def test_a_command_that_was_downgraded_is_not_reported_with_its_payload() -> None:
    given = report(graft_facts(loss_delta=0.1), grafting())
    assert (given.seed_id, given.blueprint_id) == ("", "")
    assert "blending_index" not in given.metrics


def test_entering_conservative_mode_is_a_follow_up_action() -> None:
    (action,) = report(graft_facts(loss_delta=0.2), grafting()).follow_up_actions
    assert (action.action_type, action.rationale) == ("CONSERVATIVE_MODE", "loss_spike")
    assert report(graft_facts(), grafting()).follow_up_actions == []


@pytest.mark.parametrize(
    ("given", "options", "notes"),
    [
        ({}, {"failure": "timeout_inference"}, "timeout_inference"),
        ({"coverage_average": 0.2}, {"failure": "timeout_inference"}, "timeout_inference"),
        ({"coverage_average": 0.2}, {}, "degraded_inputs"),
        ({"seeds": [seed("a", allowed_blending_methods=["cosine"])]}, {}, "blending:cosine"),
    ],
)
def test_notes_name_the_timeout_else_the_last_warning_else_the_blending(given, options, notes) -> None:
    answer = None if options else grafting()
    assert report(graft_facts(**given), answer, **options).notes == notes


def test_a_second_try_writes_the_same_report_and_another_command_another() -> None:
    given = graft_facts()
    once, again = report(given, grafting()), report(given, grafting())
    other = report(given, grafting(), replace(STAMP, command_id="c-2"))
    assert once.report_id == again.report_id != other.report_id
    assert UUID(once.report_id).version == 5


WINDOW = ObservationWindow("c-1", "s", "k", "v1", "policy", start_epoch=3, target_epochs=2, issued_at=7)


def closed(ending: Ending = Ending.COMPLETE, **fields) -> ClosedWindow:
    values = {name: getattr(WINDOW, name) for name in WINDOW.__struct_fields__}
    return ClosedWindow(ObservationWindow(**{**values, **fields}), ending)


@pytest.mark.parametrize(
    ("window", "outcome"),
    [
        (closed(steps=2, loss_delta_sum=-0.1), SUCCESS),
        (closed(steps=2, loss_delta_sum=0.1), REGRESSION),
        (closed(steps=2, loss_delta_sum=0.0), NEUTRAL),
        (closed(), NEUTRAL),
        (closed(steps=2, loss_delta_sum=-0.1, had_critical=True), REGRESSION),
        (closed(Ending.EXPIRED, steps=2, loss_delta_sum=-0.1), ABORTED),
        (closed(Ending.DISPLACED), ABORTED),
        (closed(Ending.NOT_EXECUTED, had_critical=True), ABORTED),
    ],
)
def test_a_window_reports_how_the_loss_went(window, outcome) -> None:
    assert window_outcome(window) is window_report(window, "r").outcome is outcome


def test_a_windows_report_carries_its_sums_and_the_commands_own_time() -> None:
    given = window_report(
        closed(
            steps=2,
            loss_delta_sum=-0.5,
            loss_delta_min=-0.75,
            loss_delta_max=0.25,
            hook_latency_sum=30.0,
            hook_latency_count=2,
        ),
        "r",
    )
    assert given.metrics == {
        "loss_delta": -0.5,
        "loss_delta_total": -0.5,
        "loss_delta_min": -0.75,
        "loss_delta_max": 0.25,
        "avg_hook_latency_ms": 15.0,
        "observed_steps": 2.0,
    }
    assert next(iter(given.metrics)) == "loss_delta"
    assert (given.issued_at, given.observation_window_epochs, given.training_run_id) == (7, 2, "r")
    assert (given.seed_id, given.blueprint_id, given.tamiyo_policy_version) == ("s", "k", "v1")
    assert given.notes == "window:complete reason:policy"


def test_a_window_that_saw_nothing_claims_no_loss() -> None:
    assert window_report(closed(), "r").metrics == {"observed_steps": 0.0}


def test_a_windows_report_is_another_than_its_decisions() -> None:
    assert window_report_id(WINDOW) != report_id("c-1")
    assert UUID(window_report_id(WINDOW)).version == 5


def test_a_synthesised_report_is_announced() -> None:
    given = window_report(closed(), "r")
    event = synthesised_event(given)
    assert event.name == "field_report_synthesised"
    assert event.attributes == {"report_id": given.report_id, "command_id": "c-1", "target_epochs": "2"}


def test_a_cull_reports_the_seed_without_a_kernel() -> None:
    running = [seed("a", SeedLifecycleStage.TRAINING)]
    given = report(facts(seeds=running), preferring(5, seeds=1, risk_logits=np.zeros(5)))
    assert (given.seed_id, given.blueprint_id, given.outcome) == ("a", "", SUCCESS)
