"""The risk engine: one pass of the risk table over one step's signals (domain.md §5).

Every rule that fires is recorded. The most severe action wins, whatever the order; the reason is that of the first
rule of the table that asks for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.risk_rules import RISK_RULES
from tamiyo_stream.policy.rules import Comparison, Condition, Downgrade, RiskRule
from tamiyo_stream.policy.signals import NAMED_MISSING, Signals
from tamiyo_stream.policy.thresholds import RiskThresholds

#: The reason where no rule gives one: the network's own choice.
POLICY = "policy"
#: Reason of the rule that conservative mode itself is; it does not count against a step's being clean.
CONSERVATIVE_MODE = "conservative_mode"

DEFAULT_THRESHOLDS = RiskThresholds()

_TESTS: dict[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.ABOVE: operator.gt,
    Comparison.AT_LEAST: operator.ge,
    Comparison.BELOW: operator.lt,
    Comparison.AT_MOST: operator.le,
    Comparison.IS: operator.eq,
}


@dataclass(frozen=True, slots=True)
class FiredRule:
    """A rule that fired: what it saw, against what, and what it made of the proposal."""

    rule: RiskRule
    value: object
    threshold: object
    action: Downgrade


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the rules make of a proposal. ``conservative_cause`` is empty where no rule enters the mode.

    ``clean``: nothing but conservative mode itself paused the step.
    """

    action: Downgrade
    reason: str
    fired: tuple[FiredRule, ...]
    conservative_cause: str
    clean: bool


def assess(
    signals: Signals, thresholds: RiskThresholds = DEFAULT_THRESHOLDS, rules: Sequence[RiskRule] = RISK_RULES
) -> Assessment:
    """Return what ``rules`` make of the step."""
    fired = tuple(_fire(rule, signals, thresholds) for rule in rules if _fires(rule, signals, thresholds))
    action = max((item.action for item in fired), default=Downgrade.NONE)
    reasons = (item.rule.reason for item in fired if item.action is action and item.rule.reason)
    causes = (item.rule.reason or item.rule.event for item in fired if item.rule.conservative)
    return Assessment(
        action=action,
        reason=next(reasons, POLICY),
        fired=fired,
        conservative_cause=next(causes, ""),
        clean=not any(item.action is Downgrade.PAUSE and item.rule.reason != CONSERVATIVE_MODE for item in fired),
    )


def events_of(assessment: Assessment, signals: Signals) -> tuple[PolicyEvent, ...]:
    """Return one event per rule that fired, in the table's order, with the attributes that its row names."""
    return tuple(
        PolicyEvent(
            item.rule.event,
            item.rule.level,
            {name: text_of(getattr(signals, signal)) for name, signal in item.rule.attributes},
        )
        for item in assessment.fired
    )


def text_of(value: object) -> str:
    """Return ``value`` as an event attribute: enumerations by name, numbers short, None as ``unknown``."""
    if value is None:
        return "unknown"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return ",".join(map(str, value[:NAMED_MISSING]))
    return str(value)


def _fires(rule: RiskRule, signals: Signals, thresholds: RiskThresholds) -> bool:
    if not all(_holds(condition, signals, thresholds) for condition in rule.when):
        return False
    return not (rule.unless and all(_holds(condition, signals, thresholds) for condition in rule.unless))


def _fire(rule: RiskRule, signals: Signals, thresholds: RiskThresholds) -> FiredRule:
    first = rule.when[0]
    acts = signals.grafts or not rule.acts_on_grafts
    action = rule.action if acts else Downgrade.NONE
    return FiredRule(rule, getattr(signals, first.signal), _limit(first, thresholds), action)


def _holds(condition: Condition, signals: Signals, thresholds: RiskThresholds) -> bool:
    value = getattr(signals, condition.signal)
    return value is not None and _TESTS[condition.test](value, _limit(condition, thresholds))


def _limit(condition: Condition, thresholds: RiskThresholds) -> Any:
    return getattr(thresholds, condition.threshold) if condition.threshold else condition.value
