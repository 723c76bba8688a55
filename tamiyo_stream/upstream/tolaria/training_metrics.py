"""The step's ``training_metrics`` (``domain.md`` §2.4): loss, gradient and optimizer figures, and the host's load.

Only what was measured is in the map. A loss or gradient norm of NaN is a measurement: the run has diverged.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.optim import Optimizer

from schemas.tolaria import HardwareContext
from tamiyo_stream.upstream.tolaria.ewma import Ewma
from tamiyo_stream.upstream.tolaria.optimizer import (
    FAMILY_INDEX,
    OTHER_FAMILY_INDEX,
    family_of,
    learning_rate_of,
    momentum_of,
)

#: The host's load is read this often; reading /proc costs 0.1 ms.
HOST_INTERVAL_S = 1.0
GB = 1e9


class LossMeter:
    """Moving statistics of loss and gradient norm."""

    def __init__(self) -> None:
        self._loss = Ewma(1)
        self._gradient = Ewma(1)
        self._previous: float | None = None

    def update(self, loss: float | None, gradient_norm: float | None) -> dict[str, float]:
        """Take in one step and return its figures. None = not measured."""
        metrics: dict[str, float] = {}
        if loss is not None:
            metrics["loss"] = loss
            if self._previous is not None:
                metrics["loss_delta"] = loss - self._previous
            self._previous = loss
            metrics |= _moving(self._loss, loss, "loss_ewma", "loss_volatility", root=True)
        if gradient_norm is not None:
            metrics["gradient_norm"] = gradient_norm
            metrics |= _moving(self._gradient, gradient_norm, "grad_norm_ewma", "grad_var", root=False)
        return metrics


def _moving(statistics: Ewma, sample: float, mean: str, spread: str, *, root: bool) -> dict[str, float]:
    statistics.update(np.array([sample]))
    if statistics.count[0] == 0:
        return {}
    variance = float(statistics.variance[0])
    return {mean: float(statistics.mean[0]), spread: math.sqrt(variance) if root else variance}


def optimizer_metrics(optimizer: Optimizer) -> dict[str, float]:
    """Return mean learning rate and momentum over the groups, and the family's index."""
    groups = optimizer.param_groups
    metrics = {"optimizer_family_index": float(FAMILY_INDEX.get(family_of(optimizer), OTHER_FAMILY_INDEX))}
    rate = _mean([learning_rate_of(group) for group in groups])
    momentum = _mean([momentum_of(group) for group in groups])
    if rate is not None:
        metrics["optimizer_lr"] = rate
    if momentum:
        metrics["optimizer_momentum"] = momentum
    return metrics


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


class HostMeter:
    """Load and memory of the machine and device, read at most once per :data:`HOST_INTERVAL_S`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read_at = -math.inf
        self._cpu_before = _cpu_times()
        self._metrics: dict[str, float] = {}
        self._context = HardwareContext(device_type=device.type)

    def read(self) -> tuple[Mapping[str, float], HardwareContext]:
        """Return the metrics and the hardware context; both may be up to an interval old."""
        now = time.monotonic()
        if now - self._read_at >= HOST_INTERVAL_S:
            self._read_at = now
            self._metrics = self._measure_cpu()
            self._context = self._measure_device()
        return self._metrics, self._context

    def _measure_cpu(self) -> dict[str, float]:
        before, self._cpu_before = self._cpu_before, _cpu_times()
        if before is None or self._cpu_before is None:
            return {}
        busy, total = (now - then for now, then in zip(self._cpu_before, before, strict=True))
        return {"cpu_util_percent": 100.0 * busy / total} if total > 0 else {}

    def _measure_device(self) -> HardwareContext:
        if self._device.type != "cuda":
            total, available = _memory() if self._device.type == "cpu" else (None, None)
            return HardwareContext(
                device_type=self._device.type, total_memory_gb=total, available_memory_gb=available
            )
        index = self._device.index if self._device.index is not None else torch.cuda.current_device()
        free, everything = torch.cuda.mem_get_info(index)
        self._metrics |= {"gpu_mem_used_gb": (everything - free) / GB, "gpu_mem_free_gb": free / GB}
        major, minor = torch.cuda.get_device_capability(index)
        return HardwareContext(
            device_type="cuda",
            device_id=str(index),
            total_memory_gb=everything / GB,
            available_memory_gb=free / GB,
            compute_capability=major * 10 + minor,
        )


def _cpu_times() -> tuple[float, float] | None:
    """Return busy and total jiffies of all cores since boot; None where the system does not tell (not Linux)."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    times = [float(value) for value in fields]
    return sum(times) - times[3] - times[4], sum(times)  # 3 and 4: idle and waiting for I/O


def _memory() -> tuple[float | None, float | None]:
    """Return physical memory and what of it is free, in GB; None where the system does not tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page / GB, os.sysconf("SC_AVPHYS_PAGES") * page / GB
    except (ValueError, OSError):
        return None, None
