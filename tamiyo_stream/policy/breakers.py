"""Circuit breakers CLOSED -> OPEN -> HALF_OPEN as pure transitions over a run's records (domain.md §5.5).

A breaker really gates its call: the caller asks :func:`attempt` before it, and records what became of it after.
The clock is passed in, Unix ns, so that a record means the same on the worker that takes the run over.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from schemas.enums import CircuitBreakerState, TelemetryLevel
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.runs.state import BreakerRecord

INFERENCE = "inference"
METADATA = "metadata"
#: Breakers around Tamiyo's own calls; conservative mode is not left while one of them is not CLOSED.
OWN_BREAKERS = (INFERENCE, METADATA)
#: Failures of a call that was made; the others say that there was none.
FAILED_CALLS = frozenset(
    {
        Failure.TIMEOUT_INFERENCE,
        Failure.INFERENCE_FAILED,
        Failure.NON_FINITE_OUTPUT,
    }
)
NS_PER_MS = 1_000_000

_CLOSED, _OPEN, _HALF_OPEN = (
    CircuitBreakerState.CLOSED,
    CircuitBreakerState.OPEN,
    CircuitBreakerState.HALF_OPEN,
)


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens (failures in a row), how long it stays open, and how many trials must succeed."""

    failures: int = 3
    cool_down_ms: int = 30_000
    successes: int = 1

    def __post_init__(self) -> None:
        for name in ("failures", "cool_down_ms", "successes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


DEFAULT_POLICY = BreakerPolicy()


@dataclass(frozen=True, slots=True)
class Transition:
    """A record after something happened, and what there is to report. The record given is never changed."""

    record: BreakerRecord
    events: tuple[PolicyEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """Whether a call may be made now, the record to keep, and what there is to report."""

    allowed: bool
    record: BreakerRecord
    events: tuple[PolicyEvent, ...] = ()


def allows(record: BreakerRecord, now: int, policy: BreakerPolicy = DEFAULT_POLICY) -> bool:
    """Return whether a call may be made at ``now`` (Unix ns).

    OPEN: once the cool-down is over. HALF_OPEN: one trial at a time; one that never reported (its worker died) is
    given up after a cool-down.
    """
    if record.operator_hold:
        return record.state is not _OPEN
    if record.state is _OPEN:
        return _cooled_down(record, now, policy)
    if record.state is _HALF_OPEN:
        return record.opened_at == 0 or _cooled_down(record, now, policy)
    return True


def attempt(name: str, record: BreakerRecord, now: int, policy: BreakerPolicy = DEFAULT_POLICY) -> Passage:
    """Return whether the call may be made; an OPEN breaker whose cool-down is over lets one trial through.

    In HALF_OPEN, ``opened_at`` is when the trial under way began, 0 between trials.
    """
    if not allows(record, now, policy):
        if now < record.opened_at and not record.operator_hold:
            # The clock that opened it ran ahead of ours: the cool-down starts again, or it would never end.
            return Passage(False, replace(record, opened_at=now))
        return Passage(False, record)
    if record.operator_hold or record.state is _CLOSED or record.state is CircuitBreakerState.UNKNOWN:
        return Passage(True, record)
    successes = record.successes if record.state is _HALF_OPEN else 0
    trial = replace(record, state=_HALF_OPEN, successes=successes, opened_at=now)
    events = () if record.state is _HALF_OPEN else (_event(name, trial, "half_open", "cool_down_over"),)
    return Passage(True, trial, events)


def record_success(name: str, record: BreakerRecord, policy: BreakerPolicy = DEFAULT_POLICY) -> Transition:
    """Return the record after a call that succeeded: failures in a row end, enough trials close the breaker."""
    if record.operator_hold or record.state is _OPEN:
        return Transition(record)
    if record.state is _HALF_OPEN:
        trial = replace(record, successes=record.successes + 1, opened_at=0)
        if trial.successes < policy.successes:
            return Transition(trial)
        closed = BreakerRecord()
        return Transition(closed, (_event(name, closed, "close", "recovered"),))
    return Transition(BreakerRecord()) if record != BreakerRecord() else Transition(record)


def record_failure(
    name: str, record: BreakerRecord, reason: str, now: int, policy: BreakerPolicy = DEFAULT_POLICY
) -> Transition:
    """Return the record after a call that failed: ``policy.failures`` in a row open the breaker, or one trial."""
    failed = replace(record, failures=record.failures + 1, successes=0)
    if record.operator_hold or record.state is _OPEN:
        return Transition(failed, (_event(name, failed, "count", reason),))
    if record.state is _HALF_OPEN or failed.failures >= policy.failures:
        opened = replace(failed, state=_OPEN, opened_at=now)
        return Transition(opened, (_event(name, opened, "open", reason),))
    return Transition(failed, (_event(name, failed, "count", reason),))


def record_outcome(
    name: str, record: BreakerRecord, failure: str, now: int, policy: BreakerPolicy = DEFAULT_POLICY
) -> Transition:
    """Return the record after a step that ended in ``failure``, "" = success; a call not made says nothing."""
    if not failure:
        return record_success(name, record, policy)
    if failure not in FAILED_CALLS:
        return Transition(record)
    return record_failure(name, record, failure, now, policy)


def hold(name: str, state: CircuitBreakerState, now: int) -> Transition:
    """Return a record that stays in ``state`` until :func:`release`, whatever happens: an operator's word."""
    held = BreakerRecord(state=state, opened_at=now if state is _OPEN else 0, operator_hold=True)
    action = "close" if state is _CLOSED else state.name.lower()
    return Transition(held, (_event(name, held, action, "operator"),))


def release(record: BreakerRecord) -> BreakerRecord:
    """Return the record under its own rules again, from the state the operator left it in."""
    return replace(record, operator_hold=False, failures=0, successes=0)


def _cooled_down(record: BreakerRecord, now: int, policy: BreakerPolicy) -> bool:
    return now - record.opened_at >= policy.cool_down_ms * NS_PER_MS


_LEVELS = {"open": TelemetryLevel.CRITICAL, "count": TelemetryLevel.WARNING}


def _event(name: str, record: BreakerRecord, action: str, reason: str) -> PolicyEvent:
    attributes = {
        "component": name,
        "reason": reason,
        "failures": str(record.failures),
        "action": action,
        "state": record.state.name,
    }
    return PolicyEvent("breaker_event", _LEVELS.get(action, TelemetryLevel.INFO), attributes)
