"""After the decision: what the run keeps of it, and the field reports that go into the same commit (design §9)."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.enums import TelemetryLevel
from schemas.tamiyo import FieldReport
from tamiyo_stream.policy.decision import Decision
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.facts import Guard, Stamp, StepFacts
from tamiyo_stream.policy.field_reports import decision_report, synthesised_event, window_report
from tamiyo_stream.policy.signals import epoch_of
from tamiyo_stream.policy.windows import DEFAULT_RULES, StepOutcome, WindowRules, observe, open_window
from tamiyo_stream.runs.state import RunState


@dataclass(frozen=True, slots=True)
class Settlement:
    """The step's field reports, its own first, and the events that go with the synthesised ones."""

    reports: tuple[FieldReport, ...]
    events: tuple[PolicyEvent, ...]


def settle(
    run: RunState, decision: Decision, facts: StepFacts, stamp: Stamp, rules: WindowRules = DEFAULT_RULES
) -> Settlement:
    """Keep in ``run`` what follows from ``decision``, and return its reports.

    The step is first shown to the windows of earlier commands, then its own command opens one: the deciding step
    is no part of what the command led to.
    """
    command, epoch = decision.command, epoch_of(facts, Guard.of(run))
    shown = observe(
        run.windows,
        StepOutcome(
            epoch=epoch,
            now=stamp.issued_at,
            loss_delta=facts.loss_delta,
            hook_latency_ms=decision.signals.hook_latency_ms,
            critical=any(event.level is TelemetryLevel.CRITICAL for event in decision.events),
        ),
        rules,
    )
    opened = open_window(
        shown.windows,
        command,
        reason=decision.reason,
        policy_version=stamp.policy_version,
        epoch=epoch,
        rules=rules,
    )
    run.conservative, run.pauses, run.windows = decision.conservative, decision.pauses, opened.windows
    synthesised = tuple(window_report(closed, run.run_id) for closed in (*shown.closed, *opened.closed))
    return Settlement(
        reports=(decision_report(decision, facts, stamp), *synthesised),
        events=tuple(map(synthesised_event, synthesised)),
    )
