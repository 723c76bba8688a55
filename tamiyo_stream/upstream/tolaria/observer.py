"""Observing one training forward pass and its backward: layer times and volumes, activation statistics, gradient flow.

Hooks are installed for sampled steps only and record the first forward pass in training mode; evaluation passes,
micro-batches after the first and recomputation under checkpointing are left alone. They read values and never return
any, so outputs and gradients stay bit-identical. Activations that are functions are seen through a torch function mode,
entered around the model's forward, and matched to the blueprint by their order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tamiyo_stream.upstream.tolaria.activation_types import BY_NAME, ActivationType, activation_of_function
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.structure import ModelStructure

#: Elements of an activation that its statistics are estimated from: standard error of a share below 0.8 %.
SAMPLE_SIZE = 4096


@dataclass(slots=True, eq=False)
class ActivationSample:
    """What was seen of one activation: evenly spaced inputs and outputs, and squared gradient norms at both ends."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    gradients_in: list[torch.Tensor] = field(default_factory=list)
    gradients_out: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One observed pass. ``latency_ms``, ``volume``: [layers], NaN where the layer was not called."""

    latency_ms: npt.NDArray[np.float64]
    volume: npt.NDArray[np.float64]
    activations: Mapping[int, ActivationSample]


class ForwardObserver:
    """Watches ``model`` while armed."""

    def __init__(self, model: nn.Module, structure: ModelStructure, guard: Safeguard) -> None:
        self._model = model
        self._structure = structure
        self._guard = guard
        self._handles: list[RemovableHandle] = []
        self._mode = _FunctionMode(self)
        self._reset()

    def _reset(self) -> None:
        size = len(self._structure.layers)
        self._recording = self._finished = False
        self._inside = 0
        self._timers: dict[int, list[_Timer]] = {}
        self._volume = np.full(size, np.nan)
        self._samples: dict[int, ActivationSample] = {}
        self._functions: list[tuple[str, ActivationSample]] = []

    @property
    def armed(self) -> bool:
        """Whether hooks are installed."""
        return bool(self._handles)

    def arm(self) -> None:
        """Install the hooks; the next training pass is recorded. An armed observer starts over."""
        self.disarm()
        self._reset()
        model = self._model
        self._handles = [model.register_forward_pre_hook(_Hook(self._begin), prepend=True)]
        device = next(model.parameters()).device
        for position, layer in enumerate(self._structure.layers):
            if layer.module is not None:
                own = layer.parameters[0].device if layer.parameters else device
                self._handles += self._watch(layer.module, _LayerWatch(self, position, own))
        for position, activation in enumerate(self._structure.activations):
            if activation.module is not None:
                kind = BY_NAME[activation.type]
                self._handles += self._watch(activation.module, _ActivationWatch(self, position, kind))
        # Last, for the model itself may be a layer, whose hook must still see the pass as running.
        self._handles.append(model.register_forward_hook(_Hook(self._end), always_call=True))

    def disarm(self) -> None:
        """Remove the hooks; what was recorded stays until the next :meth:`arm`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._mode.leave()

    def take(self) -> Observation | None:
        """Return what was recorded since :meth:`arm`, None where no training pass finished."""
        if not self._finished:
            return None
        latency = np.full(len(self._structure.layers), np.nan)
        for position, timers in self._timers.items():
            latency[position] = sum(timer.elapsed_ms() for timer in timers)
        return Observation(latency, self._volume, {**self._samples, **self._matched_functions()})

    def _matched_functions(self) -> dict[int, ActivationSample]:
        """Return the functional activations by position; none where the pass called others than the traced one."""
        expected = [self._structure.activations[position].type for position in self._structure.functions]
        if [kind for kind, _ in self._functions] != expected:
            return {}
        samples = (sample for _, sample in self._functions)
        return dict(zip(self._structure.functions, samples, strict=True))

    def _watch(self, module: nn.Module, watch: _Watch) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(_Hook(watch.before)),
            module.register_forward_hook(_Hook(watch.after)),
        ]

    def _begin(self, module: nn.Module, _: Any) -> None:
        if self._finished or not module.training or not torch.is_grad_enabled():
            return
        self._recording, self._inside = True, 0
        if self._structure.functions:
            self._mode.enter()

    def _end(self, *_: Any) -> None:
        if self._recording:
            self._mode.leave()
            self._recording, self._finished = False, True

    def enter_leaf(self, measure: Callable[[], None]) -> None:
        """Run ``measure`` in front of a leaf module; functions inside it are no nodes of the graph."""
        if self._recording:
            self._inside += 1
            self._guard("forward hooks", measure)

    def leave_leaf(self, measure: Callable[[], None]) -> None:
        """Run ``measure`` behind a leaf module."""
        if self._recording:
            self._inside -= 1
            self._guard("forward hooks", measure)

    def start_timer(self, position: int, device: torch.device) -> None:
        """Start timing a call of layer ``position``."""
        self._timers.setdefault(position, []).append(_Timer(device))

    def stop_timer(self, position: int, output: object) -> None:
        """Stop timing, and add the size of ``output`` to the layer's volume."""
        self._timers[position][-1].stop()
        known = self._volume[position]
        self._volume[position] = _bytes_of(output) + (0.0 if math.isnan(known) else known)

    def sample_of(self, position: int) -> ActivationSample:
        """Return the sample of the module activation ``position``."""
        return self._samples.setdefault(position, ActivationSample())

    def watch_function(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``function`` on behalf of the model, sampling it where it is an activation of the graph."""
        kind = _activation_called(function)
        if kind is None or self._inside or not args or not isinstance(args[0], torch.Tensor):
            return function(*args, **kwargs)
        sample = ActivationSample()
        self._guard("activation hooks", lambda: take_input(sample, args[0]))
        output = function(*args, **kwargs)
        self._guard("activation hooks", lambda: self.take_output(sample, kind, output))
        self._functions.append((kind.name, sample))
        return output


    @torch.no_grad()
    def take_output(self, sample: ActivationSample, kind: ActivationType, output: torch.Tensor) -> None:
        """Keep evenly spaced elements of an activation's output, and ask its autograd node for its gradients."""
        sample.outputs.append(_spaced(output).clone())
        if output.grad_fn is not None:
            guard = self._guard
            output.grad_fn.register_hook(
                lambda inputs, outputs: _nothing(
                    guard("backward hooks", lambda: _take_gradients(sample, kind, inputs, outputs))
                )
            )


class _Watch(Protocol):
    def before(self, module: nn.Module, args: Any) -> None: ...

    def after(self, module: nn.Module, args: Any, output: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _LayerWatch:
    observer: ForwardObserver
    position: int
    device: torch.device

    def before(self, module: nn.Module, args: Any) -> None:
        self.observer.enter_leaf(lambda: self.observer.start_timer(self.position, self.device))

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.observer.leave_leaf(lambda: self.observer.stop_timer(self.position, output))


@dataclass(frozen=True, slots=True)
class _ActivationWatch:
    observer: ForwardObserver
    position: int
    kind: ActivationType

    def before(self, module: nn.Module, args: Any) -> None:
        self.observer.enter_leaf(lambda: take_input(self.observer.sample_of(self.position), args[0]))

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        sample = self.observer.sample_of(self.position)
        self.observer.leave_leaf(lambda: self.observer.take_output(sample, self.kind, output))


class _FunctionMode(TorchFunctionMode):
    """Shows the observer every torch function that the model's forward calls."""

    def __init__(self, observer: ForwardObserver) -> None:
        super().__init__()
        self._observer = observer
        self._entered = False

    def enter(self) -> None:
        if not self._entered:
            self.__enter__()
            self._entered = True

    def leave(self) -> None:
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self._observer.watch_function(func, args, kwargs or {})


class _Hook:
    """A module hook that copies and pickles as nothing: a model saved or cloned while armed takes no probe along."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> None:
        self._run(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _inert_hook()

    def __reduce__(self) -> tuple[Callable[[], _Hook], tuple[()]]:
        return _inert_hook, ()


def _inert_hook() -> _Hook:
    return _Hook(_do_nothing)


def _nothing(_: object) -> None:
    """Return None: a hook that returned anything else would replace the gradients."""


def _do_nothing(*_: Any) -> None:
    """Do nothing."""


class _Timer:
    """Times work on a device: CUDA by events, read after the step's synchronisation; the CPU by the clock."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record()
        self._on_cpu = device.type == "cpu"
        self._start = self._stop = time.perf_counter()

    def stop(self) -> None:
        if self._events is not None:
            self._events[1].record()
        self._stop = time.perf_counter()

    def elapsed_ms(self) -> float:
        if self._events is not None:
            return float(self._events[0].elapsed_time(self._events[1]))
        return (self._stop - self._start) * 1e3 if self._on_cpu else math.nan


@torch.no_grad()
def take_input(sample: ActivationSample, value: torch.Tensor) -> None:
    """Keep evenly spaced elements of an activation's input: a copy, for the activation may work in place."""
    sample.inputs.append(_spaced(value).clone())


def _take_gradients(
    sample: ActivationSample,
    kind: ActivationType,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor | None],
) -> None:
    """Keep the norms of the gradients that leave and reach an activation's autograd node in the backward pass."""
    if len(sample.gradients_out) == len(sample.outputs) or outputs[0] is None:
        return  # a second backward through a retained graph, or nothing flows here
    sample.gradients_out.append(torch.linalg.vector_norm(outputs[0].detach()))
    if kind.one_operation and inputs[0] is not None:
        sample.gradients_in.append(torch.linalg.vector_norm(inputs[0].detach()))


def _spaced(value: torch.Tensor) -> torch.Tensor:
    flat = value.detach().reshape(-1)
    size = flat.numel()
    step = max(1, size // SAMPLE_SIZE)
    # A step that divides a dimension would look at the same channel or position again and again.
    while step > 1 and math.gcd(step, size) != 1:
        step += 1
    return flat[::step]


def _bytes_of(output: object) -> float:
    if isinstance(output, torch.Tensor):
        return float(output.numel() * output.element_size())
    if isinstance(output, Mapping):
        return sum(_bytes_of(value) for value in output.values())
    if isinstance(output, tuple | list):
        return sum(_bytes_of(value) for value in output)
    return 0.0


def _activation_called(function: Callable[..., Any]) -> ActivationType | None:
    name = getattr(function, "__name__", "")
    return activation_of_function(name)
