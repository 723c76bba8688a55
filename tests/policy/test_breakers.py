"""Circuit breakers: what opens them, what a trial is, and that an operator's word stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.enums import CircuitBreakerState, TelemetryLevel
from tamiyo_stream.policy.breakers import (
    BreakerPolicy,
    allows,
    attempt,
    hold,
    record_failure,
    record_outcome,
    record_success,
    release,
)
from tamiyo_stream.runs.state import BreakerRecord

CLOSED, OPEN, HALF_OPEN = CircuitBreakerState.CLOSED, CircuitBreakerState.OPEN, CircuitBreakerState.HALF_OPEN
COOL_DOWN = 30 * 10**9
NOW = 10**18


def opened(at: int = NOW) -> BreakerRecord:
    return BreakerRecord(state=OPEN, failures=3, opened_at=at)


def failed(record: BreakerRecord, times: int = 1, *, now: int = NOW) -> BreakerRecord:
    for _ in range(times):
        record = record_failure("inference", record, "inference_failed", now).record
    return record


def test_the_third_failure_in_a_row_opens() -> None:
    assert failed(BreakerRecord(), 2).state is CLOSED
    record = failed(BreakerRecord(), 3)
    assert (record.state, record.opened_at) == (OPEN, NOW)
    assert not allows(record, NOW)


def test_a_success_ends_the_row() -> None:
    record = record_success("inference", failed(BreakerRecord(), 2)).record
    assert failed(record, 2).state is CLOSED


def test_an_open_breaker_lets_one_trial_through_after_its_cool_down() -> None:
    assert not attempt("inference", opened(), NOW + COOL_DOWN - 1).allowed
    passage = attempt("inference", opened(), NOW + COOL_DOWN)
    assert passage.allowed
    assert passage.record.state is HALF_OPEN
    assert not attempt("inference", passage.record, NOW + COOL_DOWN + 1).allowed


def test_a_trial_that_succeeds_closes() -> None:
    trial = attempt("inference", opened(), NOW + COOL_DOWN).record
    change = record_success("inference", trial)
    assert change.record == BreakerRecord()
    assert [(e.name, e.level, e.attributes["action"]) for e in change.events] == [
        ("breaker_event", TelemetryLevel.INFO, "close")
    ]


def test_a_trial_that_fails_opens_for_another_cool_down() -> None:
    later = NOW + COOL_DOWN
    record = failed(attempt("inference", opened(), later).record, now=later)
    assert (record.state, record.opened_at) == (OPEN, later)


def test_several_trials_must_succeed_one_after_the_other_where_the_policy_says_so() -> None:
    policy = BreakerPolicy(successes=2)
    trial = attempt("inference", opened(), NOW + COOL_DOWN, policy).record
    once = record_success("inference", trial, policy).record
    assert once.state is HALF_OPEN
    second = attempt("inference", once, NOW + COOL_DOWN + 1, policy)
    assert second.allowed
    assert record_success("inference", second.record, policy).record.state is CLOSED


def test_a_trial_that_never_reported_is_given_up_after_a_cool_down() -> None:
    trial = attempt("inference", opened(), NOW).record
    stuck = replace(trial, state=HALF_OPEN, opened_at=NOW)
    assert not allows(stuck, NOW + COOL_DOWN - 1)
    assert attempt("inference", stuck, NOW + COOL_DOWN).allowed


def test_a_clock_that_ran_ahead_does_not_keep_it_open_for_ever() -> None:
    ahead = opened(NOW + 10 * COOL_DOWN)
    refused = attempt("inference", ahead, NOW)
    assert not refused.allowed
    assert attempt("inference", refused.record, NOW + COOL_DOWN).allowed


def test_the_record_given_is_never_changed() -> None:
    record = BreakerRecord()
    record_failure("inference", record, "x", NOW)
    attempt("inference", record, NOW)
    assert record == BreakerRecord()


@pytest.mark.parametrize(("state", "allowed"), [(OPEN, False), (CLOSED, True), (HALF_OPEN, True)])
def test_an_operators_hold_stands_whatever_happens(state, allowed) -> None:
    held = hold("inference", state, NOW).record
    for record in (held, failed(held, 5), record_success("inference", held).record):
        assert record.state is state
        assert allows(record, NOW + 100 * COOL_DOWN) is allowed
        assert attempt("inference", record, NOW + 100 * COOL_DOWN).record.state is state


def test_a_released_breaker_follows_its_own_rules_again() -> None:
    released = release(failed(hold("inference", OPEN, NOW).record, 5))
    assert attempt("inference", released, NOW + COOL_DOWN).allowed


def test_events_tell_component_reason_failures_and_action() -> None:
    first = record_failure("inference", BreakerRecord(), "timeout_inference", NOW).events
    (event,) = first
    assert (event.name, event.level) == ("breaker_event", TelemetryLevel.WARNING)
    assert event.attributes == {
        "component": "inference",
        "reason": "timeout_inference",
        "failures": "1",
        "action": "count",
        "state": "CLOSED",
    }
    (last,) = record_failure("inference", failed(BreakerRecord(), 2), "timeout_inference", NOW).events
    assert (last.level, last.attributes["action"]) == (TelemetryLevel.CRITICAL, "open")


@pytest.mark.parametrize(
    ("failure", "failures"),
    [
        ("timeout_inference", 2),
        ("inference_failed", 2),
        ("non_finite_output", 2),
        ("breaker_open", 1),
        ("model_missing", 1),
        ("", 0),
    ],
)
def test_only_a_call_that_was_made_counts(failure, failures) -> None:
    once = failed(BreakerRecord())
    assert record_outcome("inference", once, failure, NOW).record.failures == failures


@pytest.mark.parametrize("name", ["failures", "cool_down_ms", "successes"])
def test_a_policy_that_could_never_work_is_refused(name) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        BreakerPolicy(**{name: 0})


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2 * COOL_DOWN)), max_size=60))
def test_whatever_happens_no_call_is_made_while_open_and_it_always_recovers(history) -> None:
    record, now = BreakerRecord(), NOW
    for fails, pause in history:
        now += pause
        passage = attempt("inference", record, now)
        record = passage.record
        if not passage.allowed:
            assert record.state is OPEN
            assert now < record.opened_at + COOL_DOWN
            continue
        assert record.state is not OPEN
        outcome = "inference_failed" if fails else ""
        record = record_outcome("inference", record, outcome, now).record
        assert (record.state is OPEN) == (record.opened_at == now and fails) or record.state is CLOSED
    passage = attempt("inference", record, now + COOL_DOWN)
    assert passage.allowed
    assert record_success("inference", passage.record).record.state is CLOSED
