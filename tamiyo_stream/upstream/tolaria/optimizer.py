"""What the probe reads off an optimizer: its family and the settings of its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from schemas.enums import OPTIMIZER_FAMILIES

#: `optimizer_family_index` of training_metrics (domain.md §2.4); every other family is 3.
FAMILY_INDEX: Mapping[str, int] = {"sgd": 0, "adam": 1, "adamw": 2}
OTHER_FAMILY_INDEX = 3


def family_of(optimizer: Optimizer) -> str:
    """Return the optimizer's family: the nearest known class in its ancestry, else its class name."""
    names = [kind.__name__.lower() for kind in type(optimizer).__mro__]
    return next((name for name in names if name in OPTIMIZER_FAMILIES), names[0])


def group_ids(optimizer: Optimizer) -> list[str]:
    """Return a unique id per parameter group: its ``name`` where it has one, else ``group<i>``."""
    ids: list[str] = []
    for position, group in enumerate(optimizer.param_groups):
        name = str(group.get("name") or f"group{position}")
        ids.append(name if name not in ids else f"{name}_{position}")
    return ids


def learning_rate_of(group: Mapping[str, Any]) -> float:
    """Return the group's learning rate; NaN where it has none."""
    return _number(group.get("lr"))


def momentum_of(group: Mapping[str, Any]) -> float:
    """Return the group's momentum, or Adam's first beta; NaN where the optimizer has neither."""
    betas = group.get("betas")
    return _number(betas[0] if betas else group.get("momentum"))


def _number(value: object) -> float:
    if isinstance(value, torch.Tensor):
        # Only capturable optimizers keep settings on the device; reading one there would cost a synchronisation.
        return float(value) if value.device.type == "cpu" else math.nan
    return float(value) if isinstance(value, int | float) else math.nan
