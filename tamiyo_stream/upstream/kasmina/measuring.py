"""What a step measures of grafted kernels (nothing while there is none), and the losses that gates compare."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tamiyo_stream.upstream.kasmina.seed import LOSS_WINDOW, Graft, Seed, moving_mean
from tamiyo_stream.upstream.tolaria.readout import Readout
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.updates import norms_of


class LossWindow:
    """The newest losses, left on the device until somebody asks: a dormant host never waits for one."""

    def __init__(self) -> None:
        self._losses: deque[torch.Tensor | float] = deque(maxlen=LOSS_WINDOW)

    def add(self, loss: torch.Tensor | float | None) -> None:
        """Take in a step's loss; None where the loop gave none."""
        if isinstance(loss, torch.Tensor):
            loss = loss.detach().reshape(()).clone()  # the loop may go on to add to its own
        if loss is not None:
            self._losses.append(loss)

    def read(self) -> tuple[float, ...]:
        """Return the losses as numbers, oldest first."""
        self._losses = deque(map(float, self._losses), maxlen=LOSS_WINDOW)
        return tuple(map(float, self._losses))


class KernelMeter:
    """Watches the kernels of ``seeds`` around ``optimizer.step()``; reads all of it with one synchronisation."""

    def __init__(self, optimizer: Optimizer, seeds: Sequence[Seed], guard: Safeguard) -> None:
        self._seeds = seeds
        self._guard = guard
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Take the hook off the optimizer."""
        self._handle.remove()

    def clear_gradients(self) -> None:
        """Drop the kernels' gradients: a loop that clears only its model's would leave them to add up."""
        for seed in self._seeds:
            if seed.graft is not None:
                seed.graft.kernel.zero_grad(set_to_none=True)

    def read(self, loss: torch.Tensor | float | None) -> None:
        """Put what the step measured into the grafts' readings."""
        grafts = [seed.graft for seed in self._seeds if seed.graft is not None and not seed.paused]
        if not grafts:
            return
        readout = Readout()
        measured = {name: [g for g in grafts if getattr(g, name) is not None] for name in ("gradient", "ratio")}
        for name, owners in measured.items():
            readout.put(name, [getattr(graft, name) for graft in owners])
        if isinstance(loss, torch.Tensor):
            readout.put("loss", [loss.detach().reshape(())])
        values = readout.read()
        for graft, norm in zip(measured["gradient"], values["gradient"].tolist(), strict=True):
            graft.gradient_norm = norm
            graft.readings.gradient_mean = moving_mean(graft.readings.gradient_mean, norm)
        for graft, ratio in zip(measured["ratio"], values["ratio"].tolist(), strict=True):
            graft.readings.ratio_mean = moving_mean(graft.readings.ratio_mean, ratio)
        number = float(values["loss"][0]) if "loss" in values else loss
        for graft in grafts:
            _finish(graft, None if number is None else float(number))

    def _before_step(self, *_: Any) -> None:
        for seed in self._seeds:
            if seed.graft is not None:
                self._guard("kernel gradients", partial(_measure_gradient, seed.graft))


@torch.no_grad()
def _measure_gradient(graft: Graft) -> None:
    norms = norms_of(_gradients(graft.kernel))
    graft.gradient = torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def _gradients(kernel: nn.Module) -> list[torch.Tensor]:
    return [tensor.grad for tensor in kernel.parameters() if tensor.grad is not None]


def _finish(graft: Graft, loss: float | None) -> None:
    if loss is not None:
        graft.readings.losses.append(loss)
    latency = graft.timer.elapsed_ms() if graft.timer is not None else math.nan
    if math.isfinite(latency):
        graft.latency_ms = latency
        graft.latency_mean_ms = moving_mean(graft.latency_mean_ms, latency)
    graft.gradient = graft.ratio = graft.timer = None
