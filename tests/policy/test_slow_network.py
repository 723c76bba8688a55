"""A network that becomes too slow, step by step: pauses, breaker, conservative mode, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from schemas.enums import CircuitBreakerState, CommandType
from tamiyo_stream.policy.breakers import INFERENCE, BreakerPolicy, attempt, record_outcome
from tamiyo_stream.policy.conservative import ConservativeRules
from tamiyo_stream.policy.decision import Decision, decide
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.facts import Guard, PolicyProfile
from tamiyo_stream.policy.failures import Failure, failure_of
from tamiyo_stream.policy.settlement import settle
from tamiyo_stream.runs.state import BreakerRecord, RunState
from tests.policy.samples import STAMP, graft_facts, grafting

SECOND = 10**9
BUDGET_MS = 45.0
PROFILE = PolicyProfile(
    conservative=ConservativeRules(clean_steps=3, cool_down_ms=5_000),
    breaker=BreakerPolicy(failures=3, cool_down_ms=30_000),
)


@dataclass
class Steps:
    """One run, a step per second, in the order in which a worker calls the policy."""

    run: RunState = field(default_factory=lambda: RunState(run_id="r"))
    step: int = 0
    events: list[PolicyEvent] = field(default_factory=list)

    def take(self, elapsed_ms: float) -> Decision:
        self.step += 1
        now = self.step * SECOND
        passage = attempt(INFERENCE, self.run.breakers.get(INFERENCE, BreakerRecord()), now, PROFILE.breaker)
        answer, failure = (grafting(), "") if passage.allowed else (None, Failure.BREAKER_OPEN)
        stamp = replace(
            STAMP, command_id=f"c{self.step}", issued_at=now, elapsed_ms=elapsed_ms, budget_ms=BUDGET_MS
        )
        failure = failure_of(answer, failure, elapsed_ms=elapsed_ms, budget_ms=BUDGET_MS)
        change = record_outcome(INFERENCE, passage.record, failure, now, PROFILE.breaker)
        self.run.breakers[INFERENCE] = change.record
        facts = graft_facts(packet={"global_step": self.step})
        decision = decide(facts, answer, stamp, failure=failure, guard=Guard.of(self.run), profile=PROFILE)
        settle(self.run, decision, facts, stamp, PROFILE.windows)
        self.events += (*passage.events, *change.events, *decision.events)
        return decision

    def reasons(self, steps: int, elapsed_ms: float) -> list[str]:
        return [self.take(elapsed_ms).reason for _ in range(steps)]

    @property
    def breaker(self) -> CircuitBreakerState:
        return self.run.breakers[INFERENCE].state


def test_one_late_step_pauses_and_the_next_goes_on() -> None:
    steps = Steps()
    assert steps.reasons(1, 99.0) == ["timeout_inference"]
    assert steps.take(10.0).command.command_type is CommandType.SEED


def test_three_late_steps_open_the_breaker_and_enter_conservative_mode() -> None:
    steps = Steps()
    assert steps.reasons(3, 99.0) == ["timeout_inference"] * 3
    assert steps.breaker is CircuitBreakerState.OPEN
    assert (steps.run.conservative.active, steps.run.conservative.reason) == (True, "breaker_open")


def test_while_open_the_network_is_not_asked_and_the_run_gets_pauses() -> None:
    steps = Steps()
    steps.reasons(3, 99.0)
    assert set(steps.reasons(29, 10.0)) == {"breaker_open"}


def test_a_fast_trial_closes_it_and_the_mode_is_left_after_its_clean_steps() -> None:
    steps = Steps()
    steps.reasons(3, 99.0)
    steps.reasons(29, 10.0)
    assert steps.reasons(1, 10.0) == ["conservative_mode"]  # the trial: asked, but not acted upon yet
    assert steps.breaker is CircuitBreakerState.CLOSED
    assert steps.reasons(2, 10.0) == ["conservative_mode"] * 2
    assert steps.take(10.0).command.command_type is CommandType.SEED
    told = [event.name for event in steps.events if event.name.startswith("conservative")]
    assert told == ["conservative_entered", "conservative_exited"]


def test_a_slow_trial_opens_it_again() -> None:
    steps = Steps()
    steps.reasons(3, 99.0)
    steps.reasons(29, 10.0)
    assert steps.reasons(1, 99.0) == ["timeout_inference"]
    assert steps.breaker is CircuitBreakerState.OPEN
    assert set(steps.reasons(29, 10.0)) == {"breaker_open"}
