"""The trial: train a module for a few steps on one batch and record what happens.

A kernel is tried as it is grafted: the loss is that of ``x + kernel(x)`` against a smooth function of ``x``. A
host brings its own loss.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tamiyo_stream.upstream.urabrask.cost import CostMeter

#: Batch and positions of a kernel's inputs.
KERNEL_INPUT = (32, 8)


class KernelInterfaceBroken(ValueError):
    """A kernel changes the shape of its features."""


class LossIndependent(ValueError):
    """The loss does not depend on the model that was given."""


class TrialTooSlow(TimeoutError):
    """The trial used up its time before its last step."""


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """How a trial is run.

    Attributes:
        steps: training steps.
        burn_in: steps at the start whose loss does not count as oscillation.
        learning_rate: of Adam.
        budget_s: wall-clock time after which no further step begins.
        budget_bytes: of tensors held between steps, above which the trial ends with what it has seen: a module
            that leaks must not take the process with it.
        seed: of the inputs, and of the random state in which the module runs.

    Raises:
        ValueError: fewer than three steps are left after burn-in.
    """

    steps: int = 16
    burn_in: int = 4
    learning_rate: float = 1e-2
    budget_s: float = 20.0
    budget_bytes: int = 1024**3
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < self.burn_in + 3:
            raise ValueError(f"steps is {self.steps}; give at least burn_in + 3 = {self.burn_in + 3}")


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One forward pass.

    Attributes:
        loss: scalar to train on.
        response: what is compared between precisions.
        path: tensors whose gradients are compared: the last that a gradient reaches on its way back comes first.
    """

    loss: Tensor
    response: Tensor
    path: Sequence[Tensor]


#: Runs a module (the one on trial, or a copy of it in another precision) on the trial's batch.
Run = Callable[[nn.Module], Forward]


@dataclass(slots=True)
class TrialRecord:
    """What a trial saw, step by step. It ends early at a value that is not finite, or out of memory.

    Attributes:
        losses: finite ones.
        gradient_ratios: gradient norm at the far end of the path, divided by that at the near end.
        held_bytes: of the tensors that are alive after the step and were made since the trial began.
        step_s: wall-clock time, s.
        non_finite: the last step had a NaN or an infinity in its loss, outputs or gradients.
        peak_bytes: most that was alive at once, weights and inputs left out.
        flops: of all steps.
    """

    losses: list[float] = field(default_factory=list)
    gradient_ratios: list[float] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    non_finite: bool = False
    peak_bytes: int = 0
    flops: int = 0

    @property
    def gradient_ratio(self) -> float:
        """The largest ratio: it explodes where one is too large, and vanishes where all are too small."""
        return max(self.gradient_ratios, default=math.nan)

    @property
    def growth_bytes(self) -> float:
        """Bytes that a step leaves behind, beyond what the first one did (the optimizer's state)."""
        steps = len(self.held_bytes) - 1
        return max(0.0, (self.held_bytes[-1] - self.held_bytes[0]) / steps) if steps > 0 else 0.0

    @property
    def median_step_ms(self) -> float:
        """Wall-clock time of a step."""
        return 1000.0 * statistics.median(self.step_s)

    def loss_std(self, burn_in: int) -> float:
        """Return the standard deviation of the loss about its linear trend, after ``burn_in`` steps.

        About the trend, for a loss that falls does not oscillate; relative to the mean loss where that is above 1.
        NaN where fewer than three losses are left.
        """
        losses = np.array(self.losses[burn_in:])
        if len(losses) < 3:
            return math.nan
        steps = np.arange(len(losses))
        trend = np.polyval(np.polyfit(steps, losses, 1), steps)
        return float(np.std(losses - trend) / max(1.0, abs(losses.mean())))


def kernel_run(width: int, plan: TrialPlan) -> Run:
    """Return what runs a kernel on features [32, 8, width] as a graft, ``x + kernel(x)``.

    The run raises KernelInterfaceBroken where the kernel's output has another shape.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    features = torch.randn(*KERNEL_INPUT, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) / math.sqrt(width)
    target = features + 0.5 * torch.tanh(features @ mixing)

    def run(kernel: nn.Module) -> Forward:
        entering = features.clone().requires_grad_()
        leaving: Tensor = kernel(entering)
        if leaving.shape != features.shape:
            raise KernelInterfaceBroken(
                f"the kernel returns {list(leaving.shape)} for features {list(features.shape)}; keep the shape"
            )
        loss = functional.mse_loss(features + leaving, target)
        # The second term lets a kernel that passes no gradient at all show a zero.
        return Forward(loss + 0.0 * entering.sum(), leaving, (entering, leaving))

    return run


def host_run(loss_of: Callable[[nn.Module], Tensor]) -> Run:
    """Return what runs a host by its own loss; the path leads from its first weight matrix to its last."""

    def run(host: nn.Module) -> Forward:
        loss = loss_of(host)
        trained = [tensor for tensor in host.parameters() if tensor.requires_grad]
        matrices = [tensor for tensor in trained if tensor.dim() > 1]
        return Forward(loss, loss, matrices or trained)

    return run


def run_trial(
    module: nn.Module, run: Run, plan: TrialPlan, clock: Callable[[], float] = time.monotonic
) -> TrialRecord:
    """Train ``module`` for ``plan.steps`` steps with Adam; it is changed.

    Raises:
        TrialTooSlow: the plan's time was over before the last step.
        LossIndependent: the loss does not depend on the module.
        Exception: whatever the module raises.
    """
    parameters = [tensor for tensor in module.parameters() if tensor.requires_grad]
    optimizer = torch.optim.Adam([{"params": parameters}], lr=plan.learning_rate)
    record, began = TrialRecord(), clock()
    with CostMeter() as meter:
        for step in range(plan.steps):
            started = clock()
            if started - began > plan.budget_s:
                raise TrialTooSlow(
                    f"{step} of {plan.steps} steps took {started - began:.1f} s, budget {plan.budget_s:g} s; "
                    "allow more time or try a smaller width"
                )
            _step(module, run, optimizer, record)
            record.step_s.append(clock() - started)
            record.held_bytes.append(meter.held_bytes)
            if record.non_finite or meter.held_bytes > plan.budget_bytes:
                break
    record.peak_bytes, record.flops = meter.peak_bytes, meter.flops
    return record


def _step(module: nn.Module, run: Run, optimizer: torch.optim.Optimizer, record: TrialRecord) -> None:
    forward = run(module)
    parameters = optimizer.param_groups[0]["params"]
    gradients = _gradients(forward, parameters)
    path = [gradient for gradient in gradients[: len(forward.path)] if gradient is not None]
    near, far = float(path[-1].norm()), float(path[0].norm())
    loss = float(forward.loss.detach())
    measured = [forward.response, *(gradient for gradient in gradients if gradient is not None)]
    record.non_finite = not (math.isfinite(loss) and all(bool(tensor.isfinite().all()) for tensor in measured))
    if math.isfinite(far) and math.isfinite(near) and near > 0.0:
        record.gradient_ratios.append(far / near)
    if not record.non_finite:
        record.losses.append(loss)
        for parameter, gradient in zip(parameters, gradients[len(forward.path) :], strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def _gradients(forward: Forward, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients along the path, then those of ``parameters``; no tensor's ``grad`` is written."""
    wanted = [*forward.path, *parameters]
    if forward.loss.requires_grad:
        gradients = torch.autograd.grad(forward.loss, wanted, allow_unused=True)
        if any(gradient is not None for gradient in gradients[: len(forward.path)]):
            return gradients
    raise LossIndependent("the loss does not depend on the model it was given; compute it from the argument")
