"""Conservative mode as a pure transition: only harmless PAUSEs until the run is calm again (domain.md §5.4).

Hysteresis: it is entered at once and left only after enough clean steps in a row *and* a cool-down, with every
breaker closed. An operator's word overrides both.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from schemas.enums import TelemetryLevel
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.runs.state import ConservativeMode

NS_PER_MS = 1_000_000
OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class ConservativeRules:
    """When the mode may be left: steps in a row without cause, and time since it was entered."""

    clean_steps: int = 10
    cool_down_ms: int = 10_000

    def __post_init__(self) -> None:
        for name in ("clean_steps", "cool_down_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")


DEFAULT_RULES = ConservativeRules()


@dataclass(frozen=True, slots=True)
class StepCalm:
    """What one step says about the run. ``cause`` is why the mode must be on, "" = no cause.

    ``clean``: nothing paused this step but the mode itself. ``now`` is Unix ns.
    """

    step: int
    now: int
    cause: str = ""
    clean: bool = True
    breakers_closed: bool = True


@dataclass(frozen=True, slots=True)
class Transition:
    """The mode after the step, and what there is to report. The mode given is never changed."""

    mode: ConservativeMode
    events: tuple[PolicyEvent, ...] = ()


def advance(mode: ConservativeMode, calm: StepCalm, rules: ConservativeRules = DEFAULT_RULES) -> Transition:
    """Return the mode after a step."""
    if mode.operator_override is not None:
        return Transition(replace(mode, clean_steps=_counted(mode, calm)))
    if calm.cause:
        if mode.active:
            return Transition(replace(mode, clean_steps=0))
        return _entered(mode, calm.cause, calm.step, calm.now)
    if not mode.active:
        return Transition(mode)
    # A clock that ran ahead when the mode was entered must not keep the run in it: the cool-down starts again.
    since = min(mode.entered_at, calm.now)
    counted = replace(mode, clean_steps=_counted(mode, calm), entered_at=since)
    calmed = counted.clean_steps >= rules.clean_steps and calm.now - since >= rules.cool_down_ms * NS_PER_MS
    return _exited(counted, "stabilised") if calmed and calm.breakers_closed else Transition(counted)


def override(mode: ConservativeMode, forced: bool | None, *, step: int, now: int) -> Transition:
    """Return the mode after an operator's word: True forces it on, False off, None gives it back to the rules.

    Given back while on, it is left by the rules, as if the operator had entered it.
    """
    held = replace(mode, operator_override=forced)
    if forced is None or forced == mode.active:
        return Transition(held)
    return _entered(held, OPERATOR, step, now) if forced else _exited(held, OPERATOR)


def _counted(mode: ConservativeMode, calm: StepCalm) -> int:
    return mode.clean_steps + 1 if calm.clean and not calm.cause else 0


def _entered(mode: ConservativeMode, reason: str, step: int, now: int) -> Transition:
    entered = replace(mode, active=True, reason=reason, entered_step=step, entered_at=now, clean_steps=0)
    return Transition(entered, (PolicyEvent("conservative_entered", TelemetryLevel.WARNING, {"reason": reason}),))


def _exited(mode: ConservativeMode, reason: str) -> Transition:
    left = replace(mode, active=False, reason="", clean_steps=0)
    return Transition(left, (PolicyEvent("conservative_exited", TelemetryLevel.INFO, {"reason": reason}),))
