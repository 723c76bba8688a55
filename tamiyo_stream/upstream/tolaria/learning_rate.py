"""Acting on an OPTIMIZER command: Tamiyo changes the learning rate, relatively and in bounds.

A command moves every parameter group by the same share, at most by :data:`LARGEST_CHANGE`, and never out of
:data:`LOWEST` to :data:`HIGHEST` times what the run's own schedule asks for: no row of bad decisions can stop a
run from learning or blow it up. A group that its schedule left outside these bounds is never moved further out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch.optim import Optimizer

from schemas.tamiyo import AdaptationCommand

#: Key of ``optimizer_adjustment.hyperparameters``: -0.1 asks for ten per cent less.
LR_CHANGE = "lr_change"
#: Largest relative change by one command.
LARGEST_CHANGE = 0.2
#: Bounds as multiples of the schedule's own learning rate.
LOWEST, HIGHEST = 0.25, 2.0


class Refusal(StrEnum):
    """Why a command changed nothing."""

    NOT_OPTIMIZER = "not_an_optimizer_command"
    NO_LR_CHANGE = "no_lr_change"
    NOT_FINITE = "not_finite"
    GROUPS_DIFFER = "base_lrs_do_not_match_the_parameter_groups"
    AT_BOUND = "learning_rate_is_at_its_bound"
    LATE = "execution_deadline_passed"


@dataclass(frozen=True, slots=True)
class LearningRateChange:
    """What became of a command. ``before`` and ``after`` hold one learning rate per parameter group."""

    command_id: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    refusal: Refusal | None = None

    @property
    def applied(self) -> bool:
        """Whether at least one group has a new learning rate."""
        return self.refusal is None


def apply_optimizer_command(
    optimizer: Optimizer, command: AdaptationCommand, base_lrs: Sequence[float], *, now_ns: int | None = None
) -> LearningRateChange:
    """Set the learning rates that ``command`` asks for, or refuse it and change nothing.

    Args:
        optimizer: the run's optimizer; a learning rate held in a tensor is changed in place.
        command: a decision of Tamiyo; only ``lr_change`` of an OPTIMIZER command is acted on.
        base_lrs: what the run's own schedule asks for now, one per parameter group.
        now_ns: Unix time; where given, a command past its ``execution_deadline_ms`` is refused.
    """
    before = tuple(float(group["lr"]) for group in optimizer.param_groups)
    refusal = _refusal(command, before, base_lrs, now_ns)
    if refusal is not None:
        return LearningRateChange(command.command_id, before, before, refusal)
    change = _requested(command)
    after = tuple(_moved(lr, change, base) for lr, base in zip(before, base_lrs, strict=True))
    if after == before:
        return LearningRateChange(command.command_id, before, before, Refusal.AT_BOUND)
    for group, lr in zip(optimizer.param_groups, after, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    return LearningRateChange(command.command_id, before, after)


def _refusal(
    command: AdaptationCommand, before: Sequence[float], base_lrs: Sequence[float], now_ns: int | None
) -> Refusal | None:
    if command.optimizer_adjustment is None:
        return Refusal.NOT_OPTIMIZER
    if not _requested(command):
        return Refusal.NO_LR_CHANGE
    if now_ns is not None and now_ns > command.issued_at + command.execution_deadline_ms * 1_000_000:
        return Refusal.LATE
    if len(base_lrs) != len(before):
        return Refusal.GROUPS_DIFFER
    # Schemas admit finite changes only, but a run that diverged may hold anything.
    return None if all(map(math.isfinite, (*before, *base_lrs))) else Refusal.NOT_FINITE


def _requested(command: AdaptationCommand) -> float:
    adjustment = command.optimizer_adjustment
    return adjustment.hyperparameters.get(LR_CHANGE, 0.0) if adjustment is not None else 0.0


def _moved(lr: float, change: float, base: float) -> float:
    if change < 0:
        return max(lr * (1 + max(change, -LARGEST_CHANGE)), min(lr, LOWEST * base))
    return min(lr * (1 + min(change, LARGEST_CHANGE)), max(lr, HIGHEST * base))
