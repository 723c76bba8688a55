"""Measuring gradients and weight updates around ``optimizer.step()``.

Gradients are read inside the optimizer's own hooks: there they are final (accumulated, unscaled, clipped) and
cannot have been cleared yet. Their norms are taken every step. What needs a copy of the weights, the update
itself, is measured on sampled steps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tamiyo_stream.upstream.tolaria.layout import TensorLayout
from tamiyo_stream.upstream.tolaria.readout import Readout
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard

FloatArray = npt.NDArray[np.float64]


class GradientCleared(RuntimeError):
    """An optimizer that drops gradients while it steps leaves nothing to weigh its update with."""


_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class UpdateMeasurement:
    """One step per tensor, each [T]; NaN where not measured.

    ``written``: the tensor was written since the last step. ``update_norm``, ``weight_norm`` and ``loss_share``
    (gradient · update) are None on steps that are not sampled, or on which the optimizer did not run.
    """

    gradient_norm: FloatArray
    has_gradient: npt.NDArray[np.bool_]
    written: npt.NDArray[np.bool_]
    update_norm: FloatArray | None
    weight_norm: FloatArray | None
    loss_share: FloatArray | None


class UpdateMeter:
    """Watches one optimizer. ``sampled`` asks for the costly part at the next ``optimizer.step()``."""

    def __init__(self, layout: TensorLayout, guard: Safeguard) -> None:
        self.layout = layout
        self.sampled = False
        self._guard = guard
        self._trained = [int(position) for position in np.flatnonzero(layout.in_groups)]
        self._with_gradient: list[int] | None = None
        self._before: list[torch.Tensor] | None = None
        self._scalars: dict[str, list[torch.Tensor]] = {}
        self._versions = self._current_versions()

    def attach(self, optimizer: Optimizer) -> list[RemovableHandle]:
        """Install the hooks; return their handles."""
        return [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def collect(self, readout: Readout) -> None:
        """Put what was measured since the last call into ``readout``; gradients are read now if no step did."""
        if self._with_gradient is None:
            self._measure_gradients()
        for name, scalars in self._scalars.items():
            readout.put(name, scalars)

    def resolve(self, values: Mapping[str, FloatArray]) -> UpdateMeasurement:
        """Return the measurement that ``values`` (read from the same readout) hold, and start over."""
        versions = self._current_versions()
        with_gradient = self._with_gradient or []
        has_gradient = np.zeros(len(versions), dtype=np.bool_)
        has_gradient[with_gradient] = True
        measurement = UpdateMeasurement(
            gradient_norm=self._placed(values["gradient"], with_gradient),
            has_gradient=has_gradient,
            written=versions != self._versions,
            update_norm=self._placed(values["update"], self._trained) if "update" in values else None,
            weight_norm=values.get("weight"),
            loss_share=self._placed(values["share"], with_gradient) if "share" in values else None,
        )
        self._versions = versions
        self._with_gradient, self._before, self._scalars = None, None, {}
        return measurement

    def _before_step(self, *_: Any) -> None:
        self._guard("gradients", self._measure_before)

    def _after_step(self, *_: Any) -> None:
        if self._before is not None:
            self._guard("updates", self._measure_update)

    @torch.no_grad()
    def _measure_before(self) -> None:
        self._measure_gradients()
        if self.sampled:
            self._before = [self.layout.tensors[i].detach().clone() for i in self._trained]

    @torch.no_grad()
    def _measure_gradients(self) -> None:
        self._with_gradient = [i for i, tensor in enumerate(self.layout.tensors) if tensor.grad is not None]
        self._scalars = {"gradient": norms_of([_dense(self._gradient(i)) for i in self._with_gradient])}

    @torch.no_grad()
    def _measure_update(self) -> None:
        before, self._before = self._before or [], None
        weights = [tensor.detach() for tensor in self.layout.tensors]
        changes = torch._foreach_sub([weights[i] for i in self._trained], before)
        change_of = dict(zip(self._trained, changes, strict=True))
        self._scalars["update"] = norms_of(changes)
        self._scalars["weight"] = norms_of(weights)
        self._scalars["share"] = [
            _inner(self._gradient(i), change_of[i]) if i in change_of else weights[i].new_zeros(())
            for i in self._with_gradient or []
        ]

    def _gradient(self, position: int) -> torch.Tensor:
        gradient = self.layout.tensors[position].grad
        if gradient is None:
            raise GradientCleared(f"the gradient of tensor {position} was cleared inside optimizer.step()")
        return gradient

    def _placed(self, values: FloatArray, positions: Sequence[int]) -> FloatArray:
        placed = np.full(len(self.layout.tensors), np.nan)
        placed[list(positions)] = values
        return placed

    def _current_versions(self) -> npt.NDArray[np.int64]:
        # The version counter rises with every write in place, so "changed" needs neither a copy nor the device.
        return np.asarray([tensor._version for tensor in self.layout.tensors], dtype=np.int64)


def norms_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the L2 norms of ``tensors`` as zero-dimensional tensors; half precision is summed in float32."""
    if not tensors:
        return []
    if any(tensor.dtype in _HALF for tensor in tensors):
        return list(torch._foreach_norm([tensor.to(torch.float32) for tensor in tensors]))
    return list(torch._foreach_norm(list(tensors)))


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient; of a sparse one (``nn.Embedding(sparse=True)``) the values: absent rows are zero."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _inner(gradient: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return gradient · change, in float32 where they are of half precision."""
    full = gradient.to_dense() if gradient.is_sparse else gradient
    kind = torch.float32 if full.dtype in _HALF else full.dtype
    return torch.dot(full.reshape(-1).to(kind), change.reshape(-1).to(kind))
