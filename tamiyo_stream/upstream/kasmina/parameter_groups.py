"""Kernel parameters in the run's optimizer: one group per kernel, with the settings of the host's first group.

torch's learning-rate schedulers keep lists with one element per group and raise where the lengths differ, so a
group joins the schedulers too. A scheduler that nobody named is noticed before it can stop the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

#: Lists of torch.optim.lr_scheduler's classes that hold one element per parameter group.
_PER_GROUP = (
    *("base_lrs", "_last_lr", "lr_lambdas", "min_lrs"),
    *("max_lrs", "base_momentums", "max_momentums"),
)
#: Keys of a group that are its own.
_OWN = frozenset({"params", "param_names", "name"})


class ParameterGroups:
    """Adds and removes groups of ``optimizer`` and the ``schedulers`` that drive it."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Any] = ()) -> None:
        self.optimizer = optimizer
        self._schedulers = [single for scheduler in schedulers for single in _flattened(scheduler)]

    @property
    def schedulers_known(self) -> bool:
        """Whether every scheduler that would stumble over a new group was named."""
        # torch marks the optimizers that a scheduler drives; it does not say which scheduler.
        driven = hasattr(self.optimizer.step, "_wrapped_by_lr_sched")
        return bool(self._schedulers) or not driven

    def join(self, kernel: nn.Module, name: str) -> None:
        """Add the trainable parameters of ``kernel`` as group ``name``."""
        first = self.optimizer.param_groups[0]
        named = [(f"{name}.{key}", tensor) for key, tensor in kernel.named_parameters() if tensor.requires_grad]
        settings = {key: _copied(value) for key, value in first.items() if key not in _OWN}
        parameters: list[Any] = named if "param_names" in first else [tensor for _, tensor in named]
        position = len(self.optimizer.param_groups)
        self.optimizer.add_param_group({**settings, "params": parameters, "name": name})
        for values in self._lists(position):
            values.append(_copied(values[0]))

    def leave(self, kernel: nn.Module) -> None:
        """Remove what :meth:`join` added for ``kernel``, with the optimizer's state of it."""
        position = self.position_of(kernel)
        if position is None:
            return
        for values in self._lists(len(self.optimizer.param_groups)):
            del values[position]
        for tensor in self.optimizer.param_groups.pop(position)["params"]:
            self.optimizer.state.pop(tensor, None)

    def position_of(self, kernel: nn.Module) -> int | None:
        """Return the position of ``kernel``'s group, None where it has none."""
        own = {id(tensor) for tensor in kernel.parameters()}
        groups = self.optimizer.param_groups
        return next((i for i, group in enumerate(groups) if any(id(t) in own for t in group["params"])), None)

    def count_of(self, kernel: nn.Module) -> int:
        """Return how many tensors of ``kernel`` the optimizer still has, in its groups or its state."""
        held = {id(tensor) for group in self.optimizer.param_groups for tensor in group["params"]}
        held |= {id(tensor) for tensor in self.optimizer.state}
        return sum(id(tensor) in held for tensor in kernel.parameters())

    def _lists(self, length: int) -> list[list[Any]]:
        found = [vars(scheduler).get(name) for scheduler in self._schedulers for name in _PER_GROUP]
        # Schedulers that are chained may share a list.
        return list({id(v): v for v in found if isinstance(v, list) and len(v) == length}.values())


def _flattened(scheduler: Any) -> list[Any]:
    """Return ``scheduler`` and those it chains."""
    return [scheduler, *(s for inner in getattr(scheduler, "_schedulers", ()) for s in _flattened(inner))]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
