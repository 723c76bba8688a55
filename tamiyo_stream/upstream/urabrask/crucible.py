"""The crucible: puts kernels and host models through a trial and issues their safety sheets.

The trial is real training on real tensors, with inputs and random state of its own. What it is given comes out as
it went in: modules are copied, torch's random state is put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from schemas.catalogue import Stream
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from tamiyo_stream.upstream.publisher import Publisher
from tamiyo_stream.upstream.urabrask.copies import copy_in, copy_without_hooks
from tamiyo_stream.upstream.urabrask.findings import KERNEL_BATCH_SCALE, Findings
from tamiyo_stream.upstream.urabrask.sheet import safety_sheet
from tamiyo_stream.upstream.urabrask.trial import Run, TrialPlan, host_run, kernel_run, run_trial
from tamiyo_stream.upstream.urza.kernel import Kernel, KernelParameterInvalid, KernelWidthInvalid, Parameters

Verdict = BlueprintSafetySheet | BlueprintSafetyFailed

KERNEL_TRIAL = TrialPlan()
#: Gentler: a host model is far larger than a kernel, and already trained.
HOST_TRIAL = TrialPlan(steps=12, learning_rate=1e-4, budget_bytes=8 * 1024**3)
_LONGEST_REASON = 1000


def probe_module(module: nn.Module, width: int, plan: TrialPlan = KERNEL_TRIAL) -> Findings:
    """Return what a trial of the kernel ``module`` on features [32, 8, width] finds; a copy of it is tried.

    Raises:
        TrialTooSlow: the plan's time was over before the last step.
        KernelInterfaceBroken: the module does not keep the features' shape.
        Exception: whatever the module raises.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small only get dearer with more
    try:
        return _probe(module, kernel_run(width, plan), plan, KERNEL_BATCH_SCALE)
    finally:
        torch.set_num_threads(threads)


def evaluate_kernel(
    kernel: Kernel,
    width: int,
    *,
    parameters: Parameters | None = None,
    plan: TrialPlan = KERNEL_TRIAL,
    issued_at: int | None = None,
) -> Verdict:
    """Return the safety sheet of ``kernel`` at ``width``; where it fails in the crucible, the reason.

    Raises:
        KernelWidthInvalid: ``width`` is below 1.
        KernelParameterInvalid: an unknown parameter, or a value outside its bounds.
    """
    now = time.time_ns() if issued_at is None else issued_at
    try:
        findings = probe_module(kernel.build(width, parameters), width, plan)
    except (KernelWidthInvalid, KernelParameterInvalid):
        raise  # the caller's mistake, not the kernel's
    except Exception as error:  # noqa: BLE001 - the crucible's boundary: a kernel may raise anything
        return _failed(kernel.blueprint_id, error, now)
    return safety_sheet(kernel.blueprint_id, kernel.descriptor, findings, issued_at=now)


def evaluate_host(
    blueprint_id: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module], Tensor],
    *,
    plan: TrialPlan = HOST_TRIAL,
    issued_at: int | None = None,
) -> Verdict:
    """Return the safety sheet of a host model; where it fails in the crucible, the reason. Never raises.

    Copies of ``model`` are trained; its weights, gradients, buffers, hooks and torch's random state stay as they
    are. Memory for three copies and Adam's state is needed meanwhile.

    Args:
        blueprint_id: of the host, as the probe publishes it.
        model: the plain module, without wrappers.
        loss_of: the loss of the module it is given, on the same batch every time: the noise between batches
            would count as oscillation.
        plan: how it is tried.
        issued_at: Unix time, ns; None = now.
    """
    now = time.time_ns() if issued_at is None else issued_at
    try:
        findings = _probe(model, host_run(loss_of), plan, batch_scale=1)
    except Exception as error:  # noqa: BLE001 - the crucible's boundary: a training run must not stop for it
        return _failed(blueprint_id, error, now)
    return safety_sheet(blueprint_id, None, findings, issued_at=now)


def publish_sheets(publisher: Publisher, sheets: Iterable[Verdict]) -> int:
    """Publish ``sheets``; return how many the publisher took.

    They are kept: a Redis that comes back empty gets them again. A failure does not displace the kept sheet, which
    stays in force.
    """
    return sum(
        publisher.publish(Stream.SAFETY, sheet, keep_as=f"{type(sheet).__name__}:{sheet.blueprint_id}")
        for sheet in sheets
    )


def _probe(module: nn.Module, run: Run, plan: TrialPlan, batch_scale: int) -> Findings:
    with _own_random_state(module, plan.seed), torch.enable_grad():
        subject = copy_without_hooks(module)
        record = run_trial(subject, run, plan)
        exact = _response(subject, run, torch.float64)
        return Findings(
            steps=len(record.step_s),
            gradient_ratio=record.gradient_ratio,
            non_finite=record.non_finite,
            error_float32=_relative_error(_response(subject, run, torch.float32), exact),
            error_bfloat16=_relative_error(_response(subject, run, torch.bfloat16), exact),
            loss_std=record.loss_std(plan.burn_in),
            peak_bytes=record.peak_bytes,
            growth_bytes=record.growth_bytes,
            batch_scale=batch_scale,
            flops=record.flops / len(record.step_s),
            step_ms=record.median_step_ms,
        )


def _response(module: nn.Module, run: Run, dtype: torch.dtype) -> Tensor | None:
    """Return the response of ``module`` computed in ``dtype``; None where it does not run in that precision."""
    try:
        with torch.no_grad():
            return run(copy_in(module, dtype)).response.double()
    except (RuntimeError, TypeError):  # what torch raises for an operation without that precision
        return None


def _relative_error(response: Tensor | None, exact: Tensor | None) -> float:
    """Return the distance over the norm of ``exact``.

    NaN where there is nothing to compare; infinite where only ``response`` overflows, or is all error.
    """
    if response is None or exact is None or not bool(exact.isfinite().all()):
        return math.nan
    distance, norm = float((response - exact).norm()), float(exact.norm())
    if distance == 0.0:
        return 0.0
    return distance / norm if norm > 0.0 and math.isfinite(distance) else math.inf


@contextmanager
def _own_random_state(module: nn.Module, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of the devices ``module`` is on, and put them back afterwards."""
    devices = sorted({tensor.device.index or 0 for tensor in module.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def _failed(blueprint_id: str, error: Exception, issued_at: int) -> BlueprintSafetyFailed:
    reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    return BlueprintSafetyFailed(blueprint_id=blueprint_id, reason=reason, issued_at=issued_at)
