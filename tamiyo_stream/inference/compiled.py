"""The network behind ``torch.compile`` where that works, else as it is; said once (requirements 000 §4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tamiyo_stream.inference.device import accelerator_failed
from tamiyo_stream.model.network import TamiyoGNN

log = logging.getLogger("tamiyo.inference")

#: Why a requested compilation is off (``domain.md`` §4.8 ``policy_compile_reason``).
CompileReason = Literal["device_not_cuda", "cuda_unavailable", "compile_error", "runtime_failure"]


@dataclass(frozen=True, slots=True)
class CompileState:
    """Whether the network runs compiled.

    Attributes:
        enabled: forwards go through the compiled network.
        reason: why not, although it was requested; None where it is enabled or was not asked for.
        warm_ms: time the first, compiling forwards took, 0 before them: ``tamiyo.gnn.compile_warm_ms``.
    """

    enabled: bool = False
    reason: CompileReason | None = None
    warm_ms: float = 0.0


def refuse_compile(reason: CompileReason, detail: str) -> CompileState:
    """Log the one warning that a requested compilation is off, and return the state that says so."""
    log.warning("tamiyo_gnn_compile_disabled reason=%s: %s; the network runs eagerly", reason, detail)
    return CompileState(reason=reason)


class CompiledNetwork:
    """Calls of ``network`` through ``torch.compile(dynamic=True, mode="reduce-overhead")``.

    Compilation happens in the first call. The first failure, then or later, ends it for good: one warning, and
    that call too is answered by the network as it is. A failing accelerator is not the compiler's fault and is
    raised.
    """

    def __init__(self, network: TamiyoGNN) -> None:
        self._network = network
        self._succeeded = False
        self._compiled: Callable[..., Any] | None = None
        self.state = CompileState(enabled=True)
        try:
            self._compiled = torch.compile(network, dynamic=True, mode="reduce-overhead")
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises, the network can run without it
            self._give_up(error)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what the network returns."""
        if self._compiled is None:
            return self._network(*arguments, **options)
        try:
            outputs = self._compiled(*arguments, **options)
        except Exception as error:
            if accelerator_failed(error):
                raise
            outputs = self._network(*arguments, **options)  # raises as well where the input is at fault
            self._give_up(error)
            return outputs
        self._succeeded = True
        return outputs

    def warmed(self, warm_ms: float) -> None:
        """Record how long the first forwards took, compilation included."""
        if self.state.enabled:
            self.state = replace(self.state, warm_ms=warm_ms)

    def _give_up(self, error: Exception) -> None:
        self._compiled = None
        self.state = refuse_compile("runtime_failure" if self._succeeded else "compile_error", repr(error))
