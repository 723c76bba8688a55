"""The parameters a command may carry: unit, bounds, and the slot's output each comes from (domain.md §4.2).

A slot has four outputs in [-1, 1]. Nothing leaves here that is not finite and within its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.enums import BLENDING_METHODS
from schemas.urza import BlueprintDescriptor, BlueprintParameterBounds
from tamiyo_stream.policy.blending import SCHEDULE_UNITS, Blending

#: Outputs of a slot.
NUM_PARAMS = 4
#: Output of the optimizer slot that is the learning-rate change; the others are not used by it.
LR_CHANGE_PARAM = 0
LR_CHANGE = "lr_change"


@dataclass(frozen=True, slots=True)
class CommandParameter:
    """One parameter that commands carry by a fixed name. Bounds are inclusive, in ``unit``."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


#: Fixed names. A kernel's own parameters come on top, bounded by its descriptor (:func:`kernel_parameters`).
COMMAND_PARAMETERS: dict[str, CommandParameter] = {
    entry.name: entry
    for entry in (
        CommandParameter(
            LR_CHANGE, "1", -0.5, 0.5, "relative change of the learning rate: -0.1 = ten per cent less"
        ),
        CommandParameter(
            "alpha", "1", 0.0, 0.0, "initial alpha of a germinated seed: it starts without influence"
        ),
        CommandParameter(
            "blending_method_index", "index", 0.0, len(BLENDING_METHODS) - 1.0, "position in the blending methods"
        ),
        CommandParameter("blending_schedule_start", SCHEDULE_UNITS, 0.0, 1.0, "where the alpha ramp starts"),
        CommandParameter("blending_schedule_end", SCHEDULE_UNITS, 0.0, 1.0, "where the alpha ramp ends"),
    )
}


def learning_rate_change(output: float, largest: float, *, raise_allowed: bool = True) -> float:
    """Return the relative learning-rate change for ``output`` in [-1, 1]; at most ``largest`` either way.

    Under a downgrade it is never raised: who must not graft must not speed up either.
    """
    bounds = COMMAND_PARAMETERS[LR_CHANGE]
    change = _within(output, -1.0, 1.0) * _within(largest, 0.0, bounds.high)
    return change if raise_allowed else min(change, 0.0)


def germination_parameters(
    blending: Blending,
    descriptor: BlueprintDescriptor | None,
    allowed: Sequence[str] | None,
    outputs: Sequence[float],
) -> dict[str, float]:
    """Return every parameter of a GERMINATE: the fixed names first, then the kernel's own."""
    fixed = {
        "alpha": 0.0,
        "blending_method_index": float(blending.index),
        "blending_schedule_start": blending.start,
        "blending_schedule_end": blending.end,
    }
    own = kernel_parameters(descriptor, allowed, outputs)
    return {**own, **fixed}


def kernel_parameters(
    descriptor: BlueprintDescriptor | None, allowed: Sequence[str] | None, outputs: Sequence[float]
) -> dict[str, float]:
    """Return the kernel's parameters by name, scaled from ``outputs`` (each in [-1, 1]) into its bounds.

    In name order the first four take one output each; further ones stand at the middle of their range. A parameter
    whose bounds are not finite, or hold no whole number where it must be one, is left to the kernel's default.
    ``allowed`` is the seed's list of parameter ids: an empty list allows none, a list that names some of the
    kernel's parameters allows those, one that names only the host's parameter groups says nothing about the
    kernel's.
    """
    bounds: Mapping[str, BlueprintParameterBounds] = (
        descriptor.allowed_parameters if descriptor is not None else {}
    )
    settable = [name for name in sorted(bounds) if name not in COMMAND_PARAMETERS and _settable(bounds[name])]
    if allowed is not None:
        listed = [name for name in settable if name in allowed]
        settable = listed if listed or not allowed else settable
    return {
        name: _scaled(outputs[position] if position < len(outputs) else 0.0, bounds[name])
        for position, name in enumerate(settable)
    }


def _settable(bounds: BlueprintParameterBounds) -> bool:
    if not (math.isfinite(bounds.min_value) and math.isfinite(bounds.max_value)):
        return False
    return not bounds.whole or math.ceil(bounds.min_value) <= math.floor(bounds.max_value)


def _scaled(output: float, bounds: BlueprintParameterBounds) -> float:
    share = (_within(output, -1.0, 1.0) + 1.0) / 2.0
    # Two products, not low + share * (high - low): the difference of two huge ends overflows.
    value = bounds.min_value * (1.0 - share) + bounds.max_value * share
    if bounds.whole:
        return float(_within(round(value), math.ceil(bounds.min_value), math.floor(bounds.max_value)))
    return _within(value, bounds.min_value, bounds.max_value)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
