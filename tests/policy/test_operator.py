"""An operator's word: it holds against the rules, until the next one."""

from __future__ import annotations

from schemas.enums import CircuitBreakerState, Override
from schemas.operator import OperatorDirective
from tamiyo_stream.policy.breakers import INFERENCE, allows
from tamiyo_stream.policy.operator import heed
from tamiyo_stream.runs.state import RunState


def word(issued_at: int, **words: Override) -> OperatorDirective:
    return OperatorDirective(issued_at=issued_at, issued_by="ops", **words)


def test_conservative_mode_is_forced_and_given_back() -> None:
    run = RunState(run_id="r")
    events = heed(run, [word(1, conservative=Override.ON)], now=10)
    assert (run.conservative.active, run.conservative.operator_override) == (True, True)
    assert [event.name for event in events] == ["conservative_entered"]
    heed(run, [word(2, conservative=Override.AUTO)], now=20)
    assert (run.conservative.active, run.conservative.operator_override) == (True, None)
    heed(run, [word(3, conservative=Override.OFF)], now=30)
    assert run.conservative.active is False


def test_a_held_breaker_does_not_move_until_it_is_released() -> None:
    run = RunState(run_id="r")
    heed(run, [word(1, inference_breaker=Override.OFF)], now=10)
    assert run.breakers[INFERENCE].state is CircuitBreakerState.OPEN
    assert not allows(run.breakers[INFERENCE], now=10**15)
    heed(run, [word(2, inference_breaker=Override.AUTO)], now=20)
    assert allows(run.breakers[INFERENCE], now=10**15)
    heed(run, [word(3, inference_breaker=Override.ON)], now=30)
    assert run.breakers[INFERENCE].state is CircuitBreakerState.CLOSED


def test_each_word_is_heeded_once_and_the_newest_counts_whatever_the_order() -> None:
    run = RunState(run_id="r")
    words = [word(2, conservative=Override.OFF), word(1, conservative=Override.ON)]
    assert [event.name for event in heed(run, words, now=10)] == ["conservative_entered", "conservative_exited"]
    assert run.conservative.active is False
    assert heed(run, words, now=20) == ()
    assert heed(run, [word(1, conservative=Override.ON)], now=30) == ()


def test_a_word_on_one_subject_leaves_the_other() -> None:
    run = RunState(run_id="r")
    heed(run, [word(5, conservative=Override.ON)], now=10)
    heed(run, [word(4, inference_breaker=Override.OFF)], now=20)
    assert run.conservative.active
    assert run.breakers[INFERENCE].operator_hold
