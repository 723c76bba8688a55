"""Conservative mode: entered at once, left late, and an operator's word stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.policy.conservative import ConservativeRules, StepCalm, advance, override
from tamiyo_stream.runs.state import ConservativeMode

RULES = ConservativeRules(clean_steps=3, cool_down_ms=1_000)
SECOND = 10**9
START = 10**18


def calm(step: int, *, seconds: float | None = None, **given) -> StepCalm:
    return StepCalm(step=step, now=START + int((step if seconds is None else seconds) * SECOND), **given)


def entered() -> ConservativeMode:
    return advance(ConservativeMode(), calm(0, cause="loss_spike"), RULES).mode


def after(mode: ConservativeMode, *steps: StepCalm) -> ConservativeMode:
    for step in steps:
        mode = advance(mode, step, RULES).mode
    return mode


def test_a_cause_enters_at_once_and_says_why() -> None:
    change = advance(ConservativeMode(clean_steps=2), calm(7, cause="loss_spike"), RULES)
    assert change.mode == ConservativeMode(
        active=True, reason="loss_spike", entered_step=7, entered_at=START + 7 * SECOND
    )
    assert [(e.name, dict(e.attributes)) for e in change.events] == [
        ("conservative_entered", {"reason": "loss_spike"})
    ]


def test_it_is_left_after_enough_clean_steps_and_says_so() -> None:
    mode = after(entered(), calm(1), calm(2))
    assert mode.active
    change = advance(mode, calm(3), RULES)
    assert not change.mode.active
    assert [(e.name, dict(e.attributes)) for e in change.events] == [
        ("conservative_exited", {"reason": "stabilised"})
    ]


def test_it_is_not_left_in_the_step_that_entered_it() -> None:
    assert entered().active


def test_clean_steps_alone_do_not_leave_it_before_the_cool_down() -> None:
    mode = after(entered(), *(calm(step, seconds=0.001 * step) for step in range(1, 50)))
    assert mode.active
    assert not after(mode, calm(50, seconds=1.0)).active


def test_the_cool_down_alone_does_not_leave_it_before_enough_clean_steps() -> None:
    assert after(entered(), calm(1, seconds=1e6), calm(2, seconds=2e6)).active


def test_a_step_that_is_not_clean_starts_the_count_again() -> None:
    mode = after(entered(), calm(1), calm(2), calm(3, clean=False), calm(4), calm(5))
    assert mode.active
    assert not after(mode, calm(6)).active


def test_a_new_cause_starts_the_count_again_and_keeps_the_first_reason() -> None:
    change = advance(after(entered(), calm(1), calm(2)), calm(3, cause="bp_quarantine"), RULES)
    assert (change.mode.reason, change.mode.clean_steps, change.events) == ("loss_spike", 0, ())


def test_it_is_not_left_while_a_breaker_is_not_closed() -> None:
    mode = after(entered(), *(calm(step, breakers_closed=False) for step in range(1, 20)))
    assert mode.active
    assert not after(mode, calm(20)).active


def test_a_clock_that_ran_ahead_when_it_was_entered_does_not_keep_it_for_ever() -> None:
    ahead = advance(ConservativeMode(), calm(0, seconds=1e6, cause="x"), RULES).mode
    assert after(ahead, calm(1), calm(2), calm(3)).active is False


def test_an_operator_can_force_it_on_whatever_the_steps_say() -> None:
    change = override(ConservativeMode(), True, step=1, now=START)
    assert change.mode.active
    assert change.events[0].attributes["reason"] == "operator"
    assert after(change.mode, *(calm(step) for step in range(1, 50))).active


def test_an_operator_can_force_it_off_whatever_the_cause() -> None:
    change = override(entered(), False, step=1, now=START)
    assert not change.mode.active
    assert change.events[0].name == "conservative_exited"
    assert not after(change.mode, calm(2, cause="loss_spike")).active


def test_given_back_it_follows_its_rules_again() -> None:
    forced = override(ConservativeMode(), True, step=0, now=START).mode
    given_back = override(forced, None, step=1, now=START + SECOND)
    assert given_back.mode.active
    assert given_back.events == ()
    assert not after(given_back.mode, calm(2), calm(3), calm(4)).active
    freed = override(override(entered(), False, step=1, now=START).mode, None, step=2, now=START).mode
    assert after(freed, calm(3, cause="loss_spike")).active


@pytest.mark.parametrize("name", ["clean_steps", "cool_down_ms"])
def test_rules_below_zero_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        ConservativeRules(**{name: -1})


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 2)), max_size=60))
def test_it_is_never_left_within_the_clean_steps_or_the_cool_down_of_a_cause(history) -> None:
    mode, seconds = ConservativeMode(), 0.0
    since_cause, entered_at = 0, 0.0
    for step, (causes, clean, pause) in enumerate(history):
        seconds += pause
        was_active = mode.active
        mode = advance(
            mode, calm(step, seconds=seconds, cause="loss_spike" if causes else "", clean=clean), RULES
        ).mode
        since_cause = 0 if causes or not clean else since_cause + 1
        if mode.active and not was_active:
            entered_at = seconds
        if was_active and not mode.active:
            assert since_cause >= RULES.clean_steps
            assert seconds - entered_at >= 0.999
        assert mode.active or not causes
