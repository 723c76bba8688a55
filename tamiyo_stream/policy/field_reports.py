"""Field reports: one per decision, and a synthesised one per observation window (domain.md §7). Pure functions.

Ids follow from the command's id, so a commit that is tried again writes the same report and not a second one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from uuid import UUID, uuid5

from schemas.enums import CommandType, FieldReportOutcome, TelemetryLevel
from schemas.tamiyo import FieldReport, MitigationAction
from tamiyo_stream.policy.decision import Decision
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.facts import Stamp, StepFacts
from tamiyo_stream.policy.signals import kernel_risk
from tamiyo_stream.policy.windows import ClosedWindow, Ending
from tamiyo_stream.runs.state import ObservationWindow

#: Namespace of report ids.
REPORTS = UUID("6f0f4b1e-6f0c-5d0b-9a61-2f6d1c7c9b11")
CONSERVATIVE_ACTION = "CONSERVATIVE_MODE"

_SUCCESS, _NEUTRAL = FieldReportOutcome.SUCCESS, FieldReportOutcome.NEUTRAL
_REGRESSION, _ABORTED = FieldReportOutcome.REGRESSION, FieldReportOutcome.ABORTED
#: Reasons that say the run got worse under what was done to it.
REGRESSION_REASONS = frozenset(
    {"bp_quarantine", "loss_spike", "isolation_violation", "hook_budget", "loss_not_finite"}
)
#: Reasons that say something was missing when it was decided: whatever follows teaches nothing about the choice.
TIMEOUT_REASONS = frozenset({"timeout_inference", "timeout_urza"})


def decision_report(decision: Decision, facts: StepFacts, stamp: Stamp) -> FieldReport:
    """Return the report on ``decision``, made with it.

    ``loss_delta`` comes first where it is known. Nothing is reported of an earlier decision.
    """
    command, operation = decision.command, decision.command.seed_operation
    return FieldReport(
        report_id=report_id(command.command_id),
        command_id=command.command_id,
        training_run_id=command.run_id,
        seed_id=command.target_seed_id,
        blueprint_id=operation.blueprint_id if operation is not None else "",
        outcome=decision_outcome(decision),
        metrics=_decision_metrics(decision, facts, stamp),
        issued_at=command.issued_at,
        tamiyo_policy_version=stamp.policy_version,
        follow_up_actions=_follow_up(decision),
        notes=_notes(decision),
    )


def decision_outcome(decision: Decision) -> FieldReportOutcome:
    """Return what is known of a decision when it is made.

    A success is a command that is meant to change something and is the network's own choice; a downgraded one is
    not, nor is any pause.
    """
    if decision.reason in REGRESSION_REASONS:
        return _REGRESSION
    if decision.reason in TIMEOUT_REASONS:
        return _NEUTRAL
    changes = decision.command.command_type is not CommandType.PAUSE
    return _SUCCESS if changes and not decision.downgraded else _NEUTRAL


def report_id(command_id: str) -> str:
    """Return the UUID of the report on the decision that issued ``command_id``."""
    return str(uuid5(REPORTS, f"fr-{command_id}"))


def window_report_id(window: ObservationWindow) -> str:
    """Return the UUID of the report that closes ``window``."""
    name = f"fr-synth-{window.command_id}-{window.start_epoch}+{window.target_epochs}"
    return str(uuid5(REPORTS, name))


def window_report(closed: ClosedWindow, run_id: str) -> FieldReport:
    """Return the synthesised report on a window that closed; ABORTED where it did not see all of its epochs."""
    window = closed.window
    return FieldReport(
        report_id=window_report_id(window),
        command_id=window.command_id,
        training_run_id=run_id,
        seed_id=window.seed_id,
        blueprint_id=window.blueprint_id,
        outcome=window_outcome(closed),
        metrics=_window_metrics(window),
        observation_window_epochs=max(window.target_epochs, 1),
        issued_at=window.issued_at,
        tamiyo_policy_version=window.policy_version,
        notes=f"window:{closed.ending.value} reason:{window.reason}",
    )


def window_outcome(closed: ClosedWindow) -> FieldReportOutcome:
    """Return what became of the command: whether the loss fell over the window, and nothing critical happened."""
    window = closed.window
    if closed.ending is not Ending.COMPLETE:
        return _ABORTED
    if window.had_critical or window.loss_delta_sum > 0.0:
        return _REGRESSION
    return _SUCCESS if window.loss_delta_sum < 0.0 else _NEUTRAL


def synthesised_event(report: FieldReport) -> PolicyEvent:
    """Return the event that goes with a synthesised report."""
    attributes = {
        "report_id": report.report_id,
        "command_id": report.command_id,
        "target_epochs": str(report.observation_window_epochs),
    }
    return PolicyEvent("field_report_synthesised", TelemetryLevel.INFO, attributes)


def _decision_metrics(decision: Decision, facts: StepFacts, stamp: Stamp) -> dict[str, float]:
    issued = decision.issued
    values: dict[str, float | None] = {
        "loss_delta": facts.loss_delta,
        "param_delta": decision.selection.param if decision.selection is not None else None,
        "value_estimate": decision.value_estimate,
        "risk_index": float(decision.risk_index) if decision.risk_index is not None else None,
        "risk_score": decision.risk_score,
        "selected_seed_score": issued.seed_score,
        "tamiyo_latency_ms": stamp.elapsed_ms,
        "hook_latency_ms": decision.signals.hook_latency_ms,
    }
    if issued.blending is not None:
        values |= {
            "blending_index": float(issued.blending.index),
            "blending_schedule_start": issued.blending.start,
            "blending_schedule_end": issued.blending.end,
        }
    if issued.kernel is not None:
        values["blueprint_risk"] = kernel_risk(facts, issued.kernel)
    return _finite(values)


def _window_metrics(window: ObservationWindow) -> dict[str, float]:
    values: dict[str, float | None] = {}
    if window.steps:
        values |= {
            "loss_delta": window.loss_delta_sum,
            "loss_delta_total": window.loss_delta_sum,
            "loss_delta_min": window.loss_delta_min,
            "loss_delta_max": window.loss_delta_max,
        }
    if window.hook_latency_count:
        values["avg_hook_latency_ms"] = window.hook_latency_sum / window.hook_latency_count
    values["observed_steps"] = float(window.steps)
    return _finite(values)


def _follow_up(decision: Decision) -> list[MitigationAction]:
    return [
        MitigationAction(action_type=CONSERVATIVE_ACTION, rationale=event.attributes["reason"])
        for event in decision.events
        if event.name == "conservative_entered"
    ]


def _notes(decision: Decision) -> str:
    told = [event.name for event in decision.events if event.level > TelemetryLevel.INFO]
    timeouts = [name for name in told if name.startswith("timeout")]
    if timeouts:
        return timeouts[0]
    if told:
        return told[-1]
    blending = decision.issued.blending
    return f"blending:{blending.method}" if blending is not None else ""


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
