"""From the device setting to a torch device, and what it looks like when that device fails."""

from __future__ import annotations

import torch


class DeviceUnavailable(RuntimeError):
    """The configured device does not exist on this machine."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a name: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        DeviceUnavailable: unknown name, no CUDA here, or no such CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise DeviceUnavailable(f"device is {name!r}; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number or 0)
    if index >= devices:
        raise DeviceUnavailable(
            f"device is {name!r}, this machine has {devices} CUDA devices; use 'auto' or 'cpu'"
        )
    return torch.device("cuda", index)


#: How libraries below torch name a device failure that reaches Python as a plain RuntimeError.
_FAILURES = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "CUDNN_STATUS_")


def accelerator_failed(error: BaseException) -> bool:
    """Return whether ``error`` says that the accelerator is lost, faulty or out of memory."""
    if isinstance(error, (torch.AcceleratorError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _FAILURES)
