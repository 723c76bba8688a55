"""The forward hook that puts a kernel beside its site: the host's forward never fails because of a seed.

Whatever goes wrong in a kernel (it raises, its output has another shape or type, or is not finite) the host's own
output stands, and the failure is handed on. Looking for values that are not finite costs one synchronisation with
the device per forward of a grafted site, dormant seeds have no hook at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tamiyo_stream.upstream.kasmina.lifecycle import BLENDED, Gate, Stage
from tamiyo_stream.upstream.kasmina.mixing import change_of, kernel_input, mixed, straight_through
from tamiyo_stream.upstream.kasmina.seed import Graft, Seed, SiteOutput
from tamiyo_stream.upstream.tolaria.hooks import Timer

#: Takes a seed, the gate that a failure belongs to, its reason code and particulars.
FailureHandler = Callable[[Seed, Gate, str, str], None]


class _Unfit(RuntimeError):
    """A kernel's output that cannot be used."""

    def __init__(self, gate: Gate, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.gate, self.reason = gate, reason


class SiteHook:
    """A forward hook that may replace the output. A model that is copied or saved takes no seed along."""

    def __init__(self, run: Callable[[nn.Module, Any], torch.Tensor | None]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, _: Any, output: Any) -> torch.Tensor | None:
        """Return what replaces ``output``, None to leave it."""
        return self._run(module, output) if isinstance(output, torch.Tensor) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteHook:
        return _inert_hook()

    def __reduce__(self) -> tuple[Callable[[], SiteHook], tuple[()]]:
        return _inert_hook, ()


def _inert_hook() -> SiteHook:
    return SiteHook(_leave)


def _leave(_: nn.Module, __: Any) -> None:
    """Leave the output."""


def learn_output(seed: Seed) -> None:
    """Install a hook that notes what the site's output looks like and removes itself."""

    def look(module: nn.Module, output: torch.Tensor) -> None:
        if output.dim():
            # Under autocast the output is of lower precision than the weights; a kernel's are to be as the host's.
            dtype = next((tensor.dtype for tensor in module.parameters()), output.dtype)
            seed.output = SiteOutput(output.shape[-1], dtype, output.device)
            forget_site(seed)

    seed.learning = seed.placed.module.register_forward_hook(SiteHook(look))


def forget_site(seed: Seed) -> None:
    """Take the hook of :func:`learn_output` off, where it still waits."""
    if seed.learning is not None:
        seed.learning.remove()
        seed.learning = None


def graft_hook(seed: Seed, on_failure: FailureHandler) -> SiteHook:
    """Return the hook that lets the seed's kernel act as its stage allows."""

    def act(module: nn.Module, output: torch.Tensor) -> torch.Tensor | None:
        graft = seed.graft
        if graft is None or seed.paused or not _acts(seed.stage, module):
            return None
        try:
            # Who watches the host's functions (the probe does, for its activations) must not take ours for its.
            with torch._C.DisableTorchFunction():
                return _act(seed, graft, module, output)
        except _Unfit as error:
            on_failure(seed, error.gate, error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - the host's boundary: no kernel stops its forward
            detail = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            on_failure(seed, Gate.G3_INTERFACE, "kernel_raised", detail)
        return None

    return SiteHook(act)


def _acts(stage: Stage, module: nn.Module) -> bool:
    return stage in BLENDED or (stage is Stage.TRAINING and module.training and torch.is_grad_enabled())


def _act(seed: Seed, graft: Graft, module: nn.Module, host: torch.Tensor) -> torch.Tensor:
    isolated = seed.stage is Stage.TRAINING
    if graft.kernel.training is not module.training:
        graft.kernel.train(module.training)
    timer = Timer(host.device)
    output = graft.kernel(kernel_input(host, isolated=isolated))
    timer.stop()
    output = _fitting(output, host)
    change = change_of(graft.blend, host, output)
    graft.timer = timer
    graft.readings.interface_checks += 1
    with torch.no_grad():
        graft.ratio = torch.linalg.vector_norm(change.float()) / torch.linalg.vector_norm(host.float())
    return straight_through(host, change) if isolated else mixed(graft.blend, seed.alpha, host, output)


def _fitting(output: object, host: torch.Tensor) -> torch.Tensor:
    """Return the kernel's ``output``, checked against the host's.

    Raises:
        _Unfit: no tensor, another shape, type or device, or a value that is not finite.
    """
    if not isinstance(output, torch.Tensor):
        raise _Unfit(Gate.G3_INTERFACE, "interface_mismatch", f"the kernel returned {type(output).__name__}")
    if torch.is_autocast_enabled(host.device.type):  # what each operation returns is autocast's choice
        output = output.to(host.dtype)
    for what in ("shape", "dtype", "device"):
        given, wanted = getattr(output, what), getattr(host, what)
        if given != wanted:
            raise _Unfit(Gate.G3_INTERFACE, "interface_mismatch", f"{what} is {given}, the host's {wanted}")
    if not bool(torch.isfinite(output).all()):
        raise _Unfit(Gate.G2_STABILITY, "kernel_output_not_finite", "the kernel's output has NaN or infinity")
    return output
