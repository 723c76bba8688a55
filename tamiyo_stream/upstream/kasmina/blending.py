"""How alpha rises: the four schedule families as pure functions of the window (``domain.md`` §4.3).

A window has ``total_steps`` optimizer steps; ``start`` and ``end`` are fractions of it. Every curve is 0 before
the start, 1 from the end on, and never falls. ``warmup_hold`` holds the host alone until the start and the seed
alone from then on; ``sigmoid`` is rescaled so that it begins and ends exactly at 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from schemas.enums import BLENDING_METHODS, DEFAULT_BLENDING_METHOD

#: Kasmina's constants (``domain.md`` §2.5).
DEFAULT_TOTAL_STEPS = 20
DEFAULT_TEMPERATURE = 2.0
#: Parameters of a GERMINATE command that say how alpha rises; the others are the kernel's own. Alpha itself always
#: starts at 0, whatever a command says.
SCHEDULE_PARAMETERS = frozenset(
    {"alpha", "blending_method_index", "blending_schedule_start", "blending_schedule_end"}
)
#: Below it, in widths of the ramp, the sigmoid is a step and its exponent overflows.
_SHARPEST = 1e-3

#: Maps progress u (0..1 within [start, end]) and steepness (share of the ramp's length) to alpha.
Curve = Callable[[float, float], float]


class ScheduleInvalid(ValueError):
    """A schedule that describes no rise from 0 to 1."""


def _linear(progress: float, _: float) -> float:
    return progress


def _cosine(progress: float, _: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def _warmup_hold(_: float, __: float) -> float:
    return 1.0


def _sigmoid(progress: float, steepness: float) -> float:
    width = max(steepness, _SHARPEST)
    low, value, high = (1.0 / (1.0 + math.exp((0.5 - u) / width)) for u in (0.0, progress, 1.0))
    return (value - low) / (high - low)


CURVES: Mapping[str, Curve] = {
    "linear": _linear,
    "cosine": _cosine,
    "warmup_hold": _warmup_hold,
    "sigmoid": _sigmoid,
}


@dataclass(frozen=True, slots=True)
class BlendingSchedule:
    """One seed's rise of alpha.

    Attributes:
        method: one of :data:`schemas.enums.BLENDING_METHODS`.
        start: fraction of the window at which alpha leaves 0.
        end: fraction at which it reaches 1, not below ``start``.
        total_steps: length of the window in optimizer steps.
        temperature: steps over which the sigmoid makes most of its rise.

    Raises:
        ScheduleInvalid: an unknown method, fractions out of 0..1 or out of order, or an empty window.
    """

    method: str = DEFAULT_BLENDING_METHOD
    start: float = 0.0
    end: float = 1.0
    total_steps: int = DEFAULT_TOTAL_STEPS
    temperature: float = DEFAULT_TEMPERATURE

    def __post_init__(self) -> None:
        if self.method not in CURVES:
            raise ScheduleInvalid(f"method is {self.method!r}; use one of {', '.join(BLENDING_METHODS)}")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ScheduleInvalid(f"start, end are {self.start}, {self.end}; give ordered fractions within 0..1")
        if self.total_steps < 1:
            raise ScheduleInvalid(f"total_steps is {self.total_steps}; give a window of at least one step")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ScheduleInvalid(f"temperature is {self.temperature}; give a positive number of steps")

    def alpha(self, steps: int) -> float:
        """Return alpha after ``steps`` optimizer steps of blending."""
        fraction = steps / self.total_steps
        if fraction < self.start:
            return 0.0
        if fraction >= self.end:
            return 1.0
        span = self.end - self.start
        steepness = self.temperature / (span * self.total_steps)
        return min(max(CURVES[self.method]((fraction - self.start) / span, steepness), 0.0), 1.0)


def schedule_of(parameters: Mapping[str, float], allowed: tuple[str, ...], total_steps: int) -> BlendingSchedule:
    """Return the schedule that a GERMINATE command's ``parameters`` ask for.

    ``blending_method_index`` is the position in :data:`schemas.enums.BLENDING_METHODS` (absent: the first of
    ``allowed``), ``blending_schedule_start`` and ``_end`` are fractions of the window.

    Raises:
        ScheduleInvalid: a method outside ``allowed``, a parameter that is not finite, or fractions out of order.
    """
    for name, value in parameters.items():
        if not math.isfinite(value):
            raise ScheduleInvalid(f"parameter {name} is {value}; send finite numbers")
    if not allowed:
        raise ScheduleInvalid("the seed allows no blending method; list some in its site")
    asked = parameters.get("blending_method_index", BLENDING_METHODS.index(allowed[0]))
    if asked not in range(len(BLENDING_METHODS)):
        raise ScheduleInvalid(f"blending_method_index is {asked}; use 0 to {len(BLENDING_METHODS) - 1}")
    method = BLENDING_METHODS[int(asked)]
    if method not in allowed:
        raise ScheduleInvalid(f"blending method {method!r} is not allowed; this seed takes {', '.join(allowed)}")
    return BlendingSchedule(
        method,
        parameters.get("blending_schedule_start", 0.0),
        parameters.get("blending_schedule_end", 1.0),
        total_steps,
    )
