"""Observing one training pass: layer times and volumes, activation statistics, gradient flow.

Hooks are installed for sampled steps only and record the first forward pass in training mode; evaluation passes,
micro-batches after the first and recomputation under checkpointing are left alone. They read values and never
return any, so outputs and gradients stay bit-identical. Activations that are functions are seen through a torch
function mode, entered around the model's forward, and matched to the blueprint by their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tamiyo_stream.upstream.tolaria.activation_types import BY_NAME, ActivationType, activation_of_function
from tamiyo_stream.upstream.tolaria.hooks import FunctionMode, Hook, Timer
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.structure import ModelStructure

#: Elements of an activation that its statistics are estimated from: standard error of a share below 0.8 %.
SAMPLE_SIZE = 4096


@dataclass(slots=True, eq=False)
class ActivationSample:
    """What was seen of one activation, one element per call.

    ``inputs``, ``outputs``: evenly spaced elements [up to SAMPLE_SIZE]; ``gradients_out``, ``gradients_in``: norms
    [()] of the gradient that reaches the output and of what is handed on to the input.
    """

    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    gradients_in: list[torch.Tensor] = field(default_factory=list)
    gradients_out: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One observed pass. ``latency_ms``, ``volume`` (bytes): [layers], NaN where the layer was not called."""

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
        self._mode = FunctionMode(self._watch_function)
        self._begin_hook, self._end_hook = Hook(self._begin), Hook(self._end)
        self._leaf_hooks: list[tuple[nn.Module, Hook, Hook]] = []
        self._located: dict[int, torch.Tensor] = {}
        self._make_leaf_hooks()
        self._start_over()

    @property
    def armed(self) -> bool:
        """Whether hooks are installed."""
        return bool(self._handles)

    def arm(self) -> None:
        """Install the hooks; the next training pass is recorded. An armed observer starts over."""
        self.disarm()
        self._start_over()
        self._handles = [self._model.register_forward_pre_hook(self._begin_hook, prepend=True)]
        for module, before, after in self._leaf_hooks:
            self._handles += (module.register_forward_pre_hook(before), module.register_forward_hook(after))
        # Last, for the model itself may be a layer, whose hook must still see the pass as running.
        self._handles.append(self._model.register_forward_hook(self._end_hook, always_call=True))

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

    def _make_leaf_hooks(self) -> None:
        for position, layer in enumerate(self._structure.layers):
            if layer.module is not None:
                self._watch_layer(position, layer.module)
        for position, activation in enumerate(self._structure.activations):
            if activation.module is not None:
                self._watch_activation(position, activation.module, BY_NAME[activation.type])

    def _start_over(self) -> None:
        self._recording = self._finished = False
        self._inside = 0
        self._timers: dict[int, list[Timer]] = {}
        self._devices = {position: tensor.device for position, tensor in self._located.items()}  # models get moved
        self._volume = np.full(len(self._structure.layers), np.nan)
        self._samples: dict[int, ActivationSample] = {}
        self._functions: list[tuple[str, ActivationSample]] = []

    def _matched_functions(self) -> dict[int, ActivationSample]:
        """Return the functional activations by position; none where the pass called others than the traced one."""
        expected = [self._structure.activations[position].type for position in self._structure.functions]
        if [kind for kind, _ in self._functions] != expected:
            return {}
        samples = (sample for _, sample in self._functions)
        return dict(zip(self._structure.functions, samples, strict=True))

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

    def _watch_layer(self, position: int, module: nn.Module) -> None:
        # Its own weights tell where the layer computes, else the model's.
        self._located[position] = next(module.parameters(), next(self._model.parameters()))

        def start() -> None:
            self._timers.setdefault(position, []).append(Timer(self._devices[position]))

        def stop(output: object) -> None:
            self._timers[position][-1].stop()
            known = self._volume[position]
            self._volume[position] = _bytes_of(output) + (0.0 if math.isnan(known) else known)

        self._watch(module, lambda _: start(), stop)

    def _watch_activation(self, position: int, module: nn.Module, kind: ActivationType) -> None:
        def sample() -> ActivationSample:
            return self._samples.setdefault(position, ActivationSample())

        self._watch(
            module,
            lambda args: _take_input(sample(), args[0]),
            lambda output: self._take_output(sample(), kind, output),
        )

    def _watch(self, module: nn.Module, before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
        """Run ``before`` on the arguments and ``after`` on the output of ``module``'s calls while recording."""

        def enter(_: nn.Module, args: Any) -> None:
            if self._recording:
                self._inside += 1  # functions inside a leaf are no nodes of the graph
                self._guard("forward hooks", lambda: before(args))

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            if self._recording:
                self._inside -= 1
                self._guard("forward hooks", lambda: after(output))

        self._leaf_hooks.append((module, Hook(enter), Hook(leave)))

    def _watch_function(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call ``function`` on behalf of the model, sampling it where it is an activation of the graph."""
        kind = activation_of_function(getattr(function, "__name__", ""))
        if kind is None or self._inside:
            return function(*args, **kwargs)
        sample = ActivationSample()
        self._guard("activation hooks", lambda: _take_input(sample, _first_tensor(args, kwargs)))
        output = function(*args, **kwargs)
        self._guard("activation hooks", lambda: self._take_output(sample, kind, output))
        self._functions.append((kind.name, sample))
        return output

    @torch.no_grad()
    def _take_output(self, sample: ActivationSample, kind: ActivationType, output: torch.Tensor) -> None:
        """Keep evenly spaced elements of an activation's output, and ask its autograd node for its gradients."""
        sample.outputs.append(_spaced(output).clone())
        if output.grad_fn is None:
            return
        guard = self._guard

        def on_gradients(inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor | None]) -> None:
            guard("backward hooks", lambda: _take_gradients(sample, kind, inputs, outputs))

        output.grad_fn.register_hook(on_gradients)


@torch.no_grad()
def _take_input(sample: ActivationSample, value: torch.Tensor) -> None:
    """Keep evenly spaced elements of an activation's input: a copy, for the activation may work in place."""
    sample.inputs.append(_spaced(value).clone())


@torch.no_grad()
def _take_gradients(
    sample: ActivationSample,
    kind: ActivationType,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor | None],
) -> None:
    """Keep the norms of the gradients that leave and reach an activation's autograd node in the backward pass."""
    if len(sample.gradients_out) == len(sample.outputs) or outputs[0] is None:
        return  # a second backward through a retained graph, or nothing flows here
    sample.gradients_out.append(torch.linalg.vector_norm(outputs[0]))
    if kind.one_operation and inputs[0] is not None:
        sample.gradients_in.append(torch.linalg.vector_norm(inputs[0]))


def _first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


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
