"""What a rule of the risk table is made of; the table itself is :mod:`tamiyo_stream.policy.risk_rules`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from schemas.enums import TelemetryLevel


class Downgrade(IntEnum):
    """What a rule makes of the proposal; the larger wins."""

    NONE = 0
    OPTIMIZER = 1
    PAUSE = 2


class Comparison(StrEnum):
    """How a signal is compared with its threshold. A signal that nobody measured passes no test."""

    ABOVE = ">"
    AT_LEAST = "≥"
    BELOW = "<"
    AT_MOST = "≤"
    IS = "is"


@dataclass(frozen=True, slots=True)
class Condition:
    """``signal`` compared with a threshold of :class:`RiskThresholds` (by name), or with a fixed ``value``."""

    signal: str
    test: Comparison
    threshold: str = ""
    value: object = None


@dataclass(frozen=True, slots=True)
class RiskRule:
    """One row. It fires when all of ``when`` hold and not all of ``unless``.

    ``number`` is the row in domain.md §5.1, 0 = ours. ``action`` applies to grafts alone where ``acts_on_grafts``
    says so; the event is reported either way. ``reason`` is empty where the rule only reports.
    ``conservative``: it enters conservative mode. ``attributes``: event attribute -> signal.
    """

    number: int
    event: str
    when: tuple[Condition, ...]
    level: TelemetryLevel
    action: Downgrade = Downgrade.NONE
    reason: str = ""
    conservative: bool = False
    acts_on_grafts: bool = False
    unless: tuple[Condition, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
