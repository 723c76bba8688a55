"""One decision: the command for a step, and why (design §9). A pure function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from schemas.enums import CircuitBreakerState, MessagePriority
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.policy import conservative
from tamiyo_stream.policy.actions import Action
from tamiyo_stream.policy.annotations import annotate, of_network, without_network
from tamiyo_stream.policy.command import build_command
from tamiyo_stream.policy.events import PolicyEvent, priority_of
from tamiyo_stream.policy.facts import Guard, PolicyProfile, Stamp, StepFacts
from tamiyo_stream.policy.failures import failure_of
from tamiyo_stream.policy.heads import NetworkHeads
from tamiyo_stream.policy.legality import NO_SEED, Candidates, Surroundings, find_candidates
from tamiyo_stream.policy.quota import in_epoch, spend
from tamiyo_stream.policy.risk import Assessment, assess, events_of
from tamiyo_stream.policy.rules import Downgrade
from tamiyo_stream.policy.selection import (
    Preference,
    Selection,
    downgraded_to_optimizer,
    downgraded_to_pause,
    expected_severity,
    preference,
    select,
)
from tamiyo_stream.policy.signals import Proposal, Signals, epoch_of, read_signals
from tamiyo_stream.policy.why import why
from tamiyo_stream.runs.state import ConservativeMode, PauseQuota

__all__ = ["Decision", "Guard", "PolicyProfile", "Stamp", "StepFacts", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A command not yet signed, and how it came about.

    ``selection`` is the network's choice, None where it had no say; ``issued`` what the command carries.
    ``conservative`` and ``pauses`` are the run's safety state after the step, to be kept with it. ``events`` are
    to be reported with the command, at ``priority``.
    """

    command: AdaptationCommand
    reason: str
    selection: Selection | None
    risk_score: float | None
    risk_index: int | None
    value_estimate: float | None
    issued: Selection
    assessment: Assessment
    signals: Signals = field(repr=False)
    conservative: ConservativeMode
    pauses: PauseQuota
    events: tuple[PolicyEvent, ...]

    @property
    def priority(self) -> MessagePriority:
        """How urgent the step's telemetry is (domain.md §5.3)."""
        return priority_of(self.events)

    @property
    def downgraded(self) -> bool:
        """Whether the command is not what the network chose."""
        return self.issued.downgraded


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the network would do; every part is None where it had no say."""

    heads: NetworkHeads | None = None
    selection: Selection | None = None
    preferred: Preference | None = None
    proposal: Proposal = field(default_factory=Proposal)


def decide(
    facts: StepFacts,
    heads: NetworkHeads | None,
    stamp: Stamp,
    *,
    failure: str = "",
    guard: Guard | None = None,
    profile: PolicyProfile | None = None,
) -> Decision:
    """Return the decision on ``facts``.

    Without usable ``heads`` (``failure`` says why, a :class:`~tamiyo_stream.policy.failures.Failure`), past the
    deadline, or where a rule of the risk table says so, it is a PAUSE without target: it changes nothing in the
    run and says why.
    """
    guard, profile = guard or Guard(), profile or PolicyProfile()
    failure = failure_of(heads, failure, elapsed_ms=stamp.elapsed_ms, budget_ms=stamp.budget_ms)
    wish = _wish(facts, guard, profile, None if failure else heads)
    signals = read_signals(
        facts, guard, wish.proposal, failure=failure, budget_ms=stamp.budget_ms, pause_quota=profile.pause_quota
    )
    assessment = assess(signals, profile.thresholds)
    issued = _issue(facts, wish, assessment.action)
    annotations = {
        **_words(wish, failure),
        **annotate(
            facts,
            stamp,
            issued=issued,
            gated=wish.selection,
            reason=assessment.reason,
            why=why(facts, wish.heads, assessment.fired, wish.selection, wish.preferred),
            blend_mode=profile.blend_mode,
        ),
    }
    mode = _conservative_after(facts, stamp, guard, profile, assessment)
    return Decision(
        command=build_command(facts, stamp, issued, annotations),
        reason=assessment.reason,
        selection=wish.selection,
        risk_score=wish.proposal.risk_score,
        risk_index=wish.proposal.risk_index,
        value_estimate=wish.proposal.value_estimate,
        issued=issued,
        assessment=assessment,
        signals=signals,
        conservative=mode.mode,
        pauses=_pauses_after(facts, guard, issued),
        events=(*events_of(assessment, signals), *mode.events),
    )


def _wish(facts: StepFacts, guard: Guard, profile: PolicyProfile, heads: NetworkHeads | None) -> _Wish:
    if heads is None:
        return _Wish()
    candidates = _candidates(facts, guard, profile)
    selection = select(heads, candidates, facts.seeds, facts.host_blending_methods)
    preferred = preference(heads, candidates)
    proposal = Proposal(
        selection=selection,
        risk_score=expected_severity(heads.risk_logits),
        risk_index=int(np.argmax(heads.risk_logits)),
        value_estimate=heads.value_estimate,
        wants_missing_seed=selection.idle and preferred.refusal == NO_SEED,
    )
    return _Wish(heads, selection, preferred, proposal)


def _candidates(facts: StepFacts, guard: Guard, profile: PolicyProfile) -> Candidates:
    # A breaker that an operator holds is not the policy's to move: as good as one that nobody reports.
    breaker = CircuitBreakerState.UNKNOWN if guard.kernel_breaker_held else guard.kernel_breaker
    return find_candidates(
        facts.seeds,
        facts.kernels,
        facts.sheets,
        Surroundings(
            has_optimizer=bool(facts.optimizer_families),
            kernel_breaker=breaker,
            host_blending_methods=facts.host_blending_methods,
            safety_failures=facts.safety_failures,
            quarantine_risk=profile.thresholds.blueprint_risk_quarantine,
        ),
    )


def _issue(facts: StepFacts, wish: _Wish, action: Downgrade) -> Selection:
    if wish.heads is None or wish.selection is None:
        return downgraded_to_pause()
    if wish.selection.idle or action is Downgrade.NONE:
        return wish.selection
    if action is Downgrade.OPTIMIZER:
        return downgraded_to_optimizer(wish.heads, has_optimizer=bool(facts.optimizer_families))
    return downgraded_to_pause()


def _words(wish: _Wish, failure: str) -> dict[str, str]:
    if wish.heads is None or wish.selection is None:
        return without_network(failure)
    return of_network(wish.heads, wish.selection, wish.proposal)


def _conservative_after(
    facts: StepFacts, stamp: Stamp, guard: Guard, profile: PolicyProfile, assessment: Assessment
) -> conservative.Transition:
    calm = conservative.StepCalm(
        step=facts.packet.global_step,
        now=stamp.issued_at,
        cause=assessment.conservative_cause,
        clean=assessment.clean,
        breakers_closed=guard.breakers_closed,
    )
    return conservative.advance(guard.conservative, calm, profile.conservative)


def _pauses_after(facts: StepFacts, guard: Guard, issued: Selection) -> PauseQuota:
    epoch = epoch_of(facts, guard)
    if issued.action is Action.PAUSE and issued.seed is not None:
        return spend(guard.pauses, epoch)
    return in_epoch(guard.pauses, epoch)
