"""Everything that measures one version of one model: its structure, its hooks, its running columns."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from schemas.tolaria import ActivationTelemetry, LayerTelemetry, ParameterTelemetry
from tamiyo_stream.upstream.tolaria.columns import (
    ActivationColumns,
    LayerColumns,
    ParameterColumns,
    positions_in,
)
from tamiyo_stream.upstream.tolaria.layout import lay_out
from tamiyo_stream.upstream.tolaria.observer import ForwardObserver
from tamiyo_stream.upstream.tolaria.optimizer import group_ids
from tamiyo_stream.upstream.tolaria.readout import Readout
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.tracing import derive_structure
from tamiyo_stream.upstream.tolaria.updates import UpdateMeasurement, UpdateMeter

log = logging.getLogger("tamiyo.probe")


@dataclass(frozen=True, slots=True, eq=False)
class StepTelemetry:
    """What one step measured; None where there was nothing to measure (no gradient, no loss given)."""

    loss: float | None = None
    gradient_norm: float | None = None
    layers: LayerTelemetry | None = None
    activations: ActivationTelemetry | None = None
    parameters: ParameterTelemetry | None = None


class Instruments:
    """Measures a model as it is structured now; wrappers around it (DDP, torch.compile) are seen through.

    Args:
        previous: measured the version before; layers, activations and parameter groups that are still there go on
            from what it knew. A seed that joins the optimizer must not blind the worker to everything else.

    Raises:
        ModelWithoutParameters: nothing in the model can be trained.
    """

    def __init__(
        self, wrapped: nn.Module, optimizer: Optimizer, guard: Safeguard, previous: Instruments | None = None
    ) -> None:
        model = unwrapped(wrapped)
        self.structure = derive_structure(model)
        self._optimizer = optimizer
        self._layout = lay_out(self.structure, model, optimizer)
        self._updates = UpdateMeter(self._layout, guard)
        self._handles: list[RemovableHandle] = self._updates.attach(optimizer)
        self._observer = ForwardObserver(model, self.structure, guard)
        # Compiled code would be compiled anew at every change of hooks.
        self.compiled = any(_is_compiled(module) for module in wrapped.modules())
        if self.compiled:
            log.info("%s is compiled: latencies and activations are not measured", type(model).__name__)
        self._layers = LayerColumns(self._layout)
        self._activations = ActivationColumns(self.structure)
        self._parameters = ParameterColumns(self._layout)
        self._groups = group_ids(optimizer)
        if previous is not None:
            self._inherit(previous)

    @property
    def outdated(self) -> bool:
        """Whether modules or learned tensors have been added, removed or replaced since."""
        return self._layout.fingerprint.differs()

    def sample_next(self, wanted: bool) -> None:
        """Say whether the coming step is a sampled one: with hooks, weight copies and activation statistics."""
        self._updates.sampled = wanted
        if wanted and not self.compiled:
            self._observer.arm()
        else:
            self._observer.disarm()

    def measure(self, loss: torch.Tensor | float | None) -> StepTelemetry:
        """Return what the step measured; one synchronisation with the device (a few more on sampled steps)."""
        readout = Readout()
        self._updates.collect(readout)
        if isinstance(loss, torch.Tensor):
            readout.put("loss", [loss.detach().reshape(())])
        values = readout.read()
        measured = self._updates.resolve(values)
        observed = self._observer.take() if self._observer.armed else None
        with np.errstate(all="ignore"):  # a diverged run measures infinities; they must not print warnings
            return StepTelemetry(
                loss=float(values["loss"][0]) if "loss" in values else number_of(loss),
                gradient_norm=_total_norm(measured),
                layers=self._layers.update(measured, observed),
                activations=self._activations.update(observed),
                parameters=self._parameters.update(measured, self._optimizer),
            )

    def _inherit(self, previous: Instruments) -> None:
        old, new = previous.structure, self.structure
        layers = positions_in(
            [(x.layer_id, id(x.module)) for x in old.layers], [(x.layer_id, id(x.module)) for x in new.layers]
        )
        activations = positions_in(
            [(x.activation_id, x.type) for x in old.activations],
            [(x.activation_id, x.type) for x in new.activations],
        )
        self._layers.inherit(previous._layers, layers)
        self._activations.inherit(previous._activations, activations)
        self._parameters.inherit(previous._parameters, positions_in(previous._groups, self._groups))

    def remove(self) -> None:
        """Take every hook off the model and the optimizer."""
        self._observer.disarm()
        for handle in self._handles:
            handle.remove()


def _total_norm(measured: UpdateMeasurement) -> float | None:
    norms = measured.gradient_norm[measured.has_gradient]
    return math.sqrt(float(np.square(norms).sum())) if norms.size else None


def number_of(loss: torch.Tensor | float | None) -> float | None:
    """Return ``loss`` as a number.

    Raises:
        ValueError: a tensor of more than one element.
    """
    return None if loss is None else float(loss)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(inner.module)
    return inner if isinstance(inner, nn.Module) else model


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
