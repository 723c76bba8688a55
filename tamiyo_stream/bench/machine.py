"""The machine a figure was measured on: named in every result, because no figure means anything without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

#: Instruction sets that decide how fast small and low-precision products are.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, str | int | float]:
    """Return CPU model, usable cores, instruction sets, versions, load and the settings that decide timings."""
    described = _cpu()
    present = set(described.get("flags", "").split())
    return {
        "machine.cpu": described.get("model name", platform.processor() or platform.machine()),
        "machine.cores": _usable_cores(),
        "machine.flags": " ".join(flag for flag in _FLAGS if flag in present) or "none of those that matter",
        "machine.torch": torch.__version__,
        "machine.python": platform.python_version(),
        "machine.gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "machine.load": round(os.getloadavg()[0], 2),
        "machine.omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
