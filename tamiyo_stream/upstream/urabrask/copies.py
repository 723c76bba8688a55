"""Copies of a module to experiment on: without its hooks, and in another precision."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """Return a deep copy of ``module`` on which no hook runs.

    Hooks belong to whoever set them, as a telemetry probe with its connections: they must neither be copied nor
    hear of what is done to the copy.
    """
    memo: dict[int, Any] = {
        id(register): OrderedDict()
        for part in module.modules()
        for name, register in vars(part).items()
        if name.endswith("_hooks") and isinstance(register, dict)
    }
    return copy.deepcopy(module, memo)


def copy_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of ``module`` in evaluation mode that computes in ``dtype``.

    It takes floating-point inputs of any precision and gives its outputs in float32, so that whatever surrounds it
    (a host's loss function and its targets) need not change.
    """
    twin = copy_without_hooks(module).to(dtype).eval()
    twin.register_forward_pre_hook(
        lambda _, args, named: (_in_dtype(args, dtype), _in_dtype(named, dtype)), with_kwargs=True
    )
    twin.register_forward_hook(lambda _, __, output: _in_dtype(output, torch.float32))
    return twin


def _in_dtype(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(
        lambda value: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value, values
    )
