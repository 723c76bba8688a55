"""How active the layers are that seeds watch, measured on every n-th step only.

The activity of a layer is the share of its output that depends on the sample: the standard deviation over the
batch divided by the root mean square, 0 (dead: the same for every input) to 1. Hooks exist on sampled steps only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tamiyo_stream.upstream.tolaria.ewma import Ewma
from tamiyo_stream.upstream.tolaria.hooks import Hook
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard


class ActivityMeter:
    """Measures ``modules`` (by layer id) on the training pass after :meth:`arm`."""

    def __init__(self, modules: Mapping[str, nn.Module], guard: Safeguard) -> None:
        self._modules = modules
        self._guard = guard
        self._handles: list[RemovableHandle] = []
        self._taken: dict[str, torch.Tensor] = {}
        self._position = {layer_id: position for position, layer_id in enumerate(modules)}
        self._moving = Ewma(len(modules))

    def arm(self) -> None:
        """Have the next training pass measured."""
        self.disarm()
        for layer_id, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(layer_id)))

    def disarm(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def collect(self) -> bool:
        """Read what was measured since :meth:`arm`; return whether there was anything. One synchronisation."""
        if not self._taken:
            return False
        samples = np.full(len(self._position), math.nan)
        for layer_id, value in self._taken.items():
            samples[self._position[layer_id]] = float(value)
        self._moving.update(samples)
        self._taken = {}
        return True

    def of(self, layer_ids: Iterable[str]) -> float | None:
        """Return the moving mean activity over ``layer_ids``, None where none of them was measured."""
        means = [float(self._moving.mean[self._position[name]]) for name in layer_ids if name in self._position]
        known = [mean for mean in means if not math.isnan(mean)]
        return fmean(known) if known else None

    def _hook(self, layer_id: str) -> Hook:
        def measure(module: nn.Module, _: Any, output: Any) -> None:
            if (
                module.training
                and torch.is_grad_enabled()
                and isinstance(output, torch.Tensor)
                and output.dim() > 1
            ):
                self._guard("activity hooks", lambda: self._taken.update({layer_id: activity_of(output)}))

        return Hook(measure)


@torch.no_grad()
def activity_of(output: torch.Tensor) -> torch.Tensor:
    """Return the activity of ``output`` [batch, ..., width] as a scalar [()]; NaN for a single sample.

    Positions of [batch, length, width] count as samples.
    """
    values = output.detach().float()
    rows = values.reshape(-1, values.shape[-1]) if values.dim() == 3 else values.reshape(values.shape[0], -1)
    if len(rows) < 2:
        return rows.new_tensor(math.nan)
    deviation = (rows - rows.mean(dim=0)).square().sum()
    total = rows.square().sum()
    return torch.where(total > 0, (deviation / total).sqrt().clamp(0.0, 1.0), total)
