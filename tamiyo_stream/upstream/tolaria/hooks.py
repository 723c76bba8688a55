"""The means of observing a module: hooks that never travel with it, a function mode, timers per device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: Calls a torch function in the observer's stead: function, positional and keyword arguments.
FunctionWatch = Callable[[Callable[..., Any], Any, Any], Any]


class Hook:
    """A module hook that copies and pickles as nothing: a model saved or cloned meanwhile takes no probe along."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> None:
        """Run the hook; what it returns is not handed on, so it cannot replace a module's input or output."""
        self._run(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return _inert_hook()

    def __reduce__(self) -> tuple[Callable[[], Hook], tuple[()]]:
        return _inert_hook, ()


def _inert_hook() -> Hook:
    return Hook(_do_nothing)


def _do_nothing(*_: Any) -> None:
    """Do nothing."""


class FunctionMode(TorchFunctionMode):
    """Shows ``watch`` every torch function called between :meth:`enter` and :meth:`leave`."""

    def __init__(self, watch: FunctionWatch) -> None:
        super().__init__()
        self._watch = watch
        self._entered = False

    def enter(self) -> None:
        """Start watching; does nothing while it is watching."""
        if not self._entered:
            super().__enter__()  # type: ignore[no-untyped-call]
            self._entered = True

    def leave(self) -> None:
        """Stop watching; does nothing otherwise."""
        if self._entered:
            self._entered = False
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch(func, args, kwargs or {})


class Timer:
    """Times work on ``device``: CUDA by events, read after the step's synchronisation; the CPU by the clock."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (_cuda_event(), _cuda_event())
            self._events[0].record()
        self._on_cpu = device.type == "cpu"
        self._start = self._stop = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock."""
        if self._events is not None:
            self._events[1].record()
        self._stop = time.perf_counter()

    def elapsed_ms(self) -> float:
        """Return the time between construction and :meth:`stop`; NaN on devices whose work cannot be timed."""
        if self._events is not None:
            return float(self._events[0].elapsed_time(self._events[1]))
        return (self._stop - self._start) * 1e3 if self._on_cpu else math.nan


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
