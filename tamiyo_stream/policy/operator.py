"""An operator's directives as pure transitions of a run's safety state. The newest word on each subject counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from schemas.enums import CircuitBreakerState, Override
from schemas.operator import OperatorDirective
from tamiyo_stream.policy import conservative
from tamiyo_stream.policy.breakers import INFERENCE, hold, release
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.runs.state import BreakerRecord, RunState

_FORCED = {Override.ON: True, Override.OFF: False, Override.AUTO: None}
_HELD = {Override.ON: CircuitBreakerState.CLOSED, Override.OFF: CircuitBreakerState.OPEN}

#: Carries one word out on a run at a time (Unix ns) and returns what there is to report.
Subject = Callable[[RunState, Override, int], tuple[PolicyEvent, ...]]


def heed(run: RunState, directives: Iterable[OperatorDirective], now: int) -> tuple[PolicyEvent, ...]:
    """Carry out on ``run`` what is newer than what it has heeded already; return the events to report."""
    events: tuple[PolicyEvent, ...] = ()
    for directive in sorted(directives, key=lambda directive: directive.issued_at):
        for subject, carry_out in SUBJECTS.items():
            word: Override | None = getattr(directive, subject)
            if word is None or directive.issued_at <= run.directives.get(subject, 0):
                continue
            run.directives[subject] = directive.issued_at
            events += carry_out(run, word, now)
    return events


def _conservative(run: RunState, word: Override, now: int) -> tuple[PolicyEvent, ...]:
    change = conservative.override(run.conservative, _FORCED[word], step=run.last_step, now=now)
    run.conservative = change.mode
    return change.events


def _inference_breaker(run: RunState, word: Override, now: int) -> tuple[PolicyEvent, ...]:
    state = _HELD.get(word)
    if state is None:
        run.breakers[INFERENCE] = release(run.breakers.get(INFERENCE, BreakerRecord()))
        return ()
    change = hold(INFERENCE, state, now)
    run.breakers[INFERENCE] = change.record
    return change.events


#: Field of the directive -> how it is carried out.
SUBJECTS: dict[str, Subject] = {"conservative": _conservative, "inference_breaker": _inference_breaker}
