"""Who answers which run, and when a policy on trial is taken back."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.inference import swap
from tamiyo_stream.inference.swap import (
    LateRecord,
    RecentTopologies,
    Result,
    RollbackReason,
    Route,
    Trial,
    TrialRules,
)
from tests.model.samples import random_step_graph

RUNS = [f"run-{number}" for number in range(1000)]
RULES = TrialRules(decisions=100, error_share=0.02, late_share=0.05)


def verdict(trial: Trial, *results: Result) -> RollbackReason | None:
    """What the last of ``results`` leads to; none before it may end the trial."""
    *before, last = results
    assert [trial.record(result) for result in before] == [None] * len(before)
    return trial.record(last)


def test_without_a_trial_one_engine_answers_every_run() -> None:
    assert {Route("stable").engine_of(run) for run in RUNS} == {"stable"}


def test_a_full_share_gives_every_run_to_the_trial() -> None:
    assert {Route("stable", "trial").engine_of(run) for run in RUNS} == {"trial"}


def test_a_canary_gets_about_its_share_of_the_runs_by_their_hash() -> None:
    chosen = [run for run in RUNS if Route("stable", "trial", 0.3).engine_of(run) == "trial"]
    assert 250 < len(chosen) < 350
    assert all(zlib.crc32(run.encode()) / 2**32 < 0.3 for run in chosen)


@given(st.text(min_size=1), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_run_in_a_small_share_is_in_every_larger_one(run: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if Route("stable", "trial", small).engine_of(run) == "trial":
        assert Route("stable", "trial", large).engine_of(run) == "trial"


@given(st.lists(st.text(), max_size=20), st.floats(0.0, 1.0))
def test_splitting_loses_nothing_and_keeps_the_order(runs: list[str], share: float) -> None:
    route = Route("stable", "trial", share)
    items = list(range(len(runs)))
    groups = route.split(items, runs)
    assert sorted(item for _, group in groups for item in group) == items
    for engine, group in groups:
        assert group == sorted(group) != []
        assert {route.engine_of(runs[item]) for item in group} == {engine}


def test_a_policy_passes_after_enough_decisions() -> None:
    trial = Trial(RULES)
    assert verdict(trial, *[Result.ANSWERED] * 99) is None
    assert not trial.passed
    assert verdict(trial, Result.ANSWERED) is None
    assert trial.passed


def test_one_answer_that_is_no_number_ends_the_trial() -> None:
    assert verdict(Trial(RULES), Result.ANSWERED, Result.NOT_FINITE) is RollbackReason.NON_FINITE_OUTPUT


def test_errors_beyond_their_share_end_the_trial_at_once() -> None:
    assert verdict(Trial(RULES), *[Result.SPARED] * 3) is RollbackReason.ERROR_RATE


def test_late_answers_beyond_their_share_end_the_trial() -> None:
    assert verdict(Trial(RULES), *[Result.LATE] * 6) is RollbackReason.DEADLINE_REGRESSION


def test_what_was_late_before_is_not_held_against_the_new_policy() -> None:
    trial = Trial(RULES, late_before=0.125)
    assert verdict(trial, *[Result.LATE] * 18) is None
    assert trial.record(Result.LATE) is RollbackReason.DEADLINE_REGRESSION


def test_a_trial_of_no_decisions_is_passed_from_the_start() -> None:
    assert Trial(replace(RULES, decisions=0)).passed


def test_the_late_share_is_that_of_the_newest_decisions() -> None:
    record = LateRecord(4)
    assert record.share == 0.0
    for late in (True, True, True, False, False, True):
        record.add(late=late)
    assert record.share == 0.5  # of True False False True


def test_recent_topologies_are_the_newest_first_and_each_once() -> None:
    recent = RecentTopologies()
    one, two = (random_step_graph(seed, layers=3 + seed).topology for seed in (0, 1))
    for topology in (one, two, one):
        recent.note(topology)
    assert recent.newest() == (one, two)


@pytest.mark.parametrize("bound", ["MAX_EDGES", "MAX_TOPOLOGIES"])
def test_recent_topologies_are_bounded_but_hold_the_newest(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(swap, bound, 1)
    recent = RecentTopologies()
    one, two = (random_step_graph(seed, layers=3 + seed).topology for seed in (0, 1))
    for topology in (one, two):
        recent.note(topology)
    assert recent.newest() == (two,)
