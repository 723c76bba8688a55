"""The structure of a model as a graph, and how it is put together from the operations that data flows through.

Both ways of obtaining it (symbolic tracing and the module tree) push a :class:`Flow` through a
:class:`StructureBuilder`: the flow knows which layers and activations a value comes from, the builder turns each
consumption into edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from torch import nn

from tamiyo_stream.upstream.tolaria.layer_types import channels_of, layer_type


class ModelWithoutParameters(ValueError):
    """The model has nothing to train, so there is nothing to observe or to steer."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer node. ``module`` is None for layers that only exist as a function on learned tensors.

    ``parameters`` are all tensors the layer owns or shares; widths are NaN where the layer has none.
    """

    layer_id: str
    type: str
    depth: int
    input_channels: float
    output_channels: float
    activation_type: str
    dropout_rate: float
    module: nn.Module | None
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """An activation node. ``module`` is None where the model calls a function."""

    activation_id: str
    type: str
    module: nn.Module | None


@dataclass(frozen=True, slots=True)
class Connection:
    """Data flow between two layers over ``paths`` distinct ways; ``residual``: a shortcut of an addition."""

    source: int
    target: int
    paths: int
    residual: bool


@dataclass(frozen=True, slots=True, eq=False)
class ModelStructure:
    """A model's layers, activations and data flow. Edges are (source, target) positions.

    ``source``: ``fx`` or ``module_tree``; ``functions``: the activations that are functions, in the order in which
    one forward pass computes them; ``fallback_reason`` says why tracing failed, empty where it did not.
    """

    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]
    connects: tuple[Connection, ...]
    feeds: tuple[tuple[int, int], ...]
    influences: tuple[tuple[int, int], ...]
    functions: tuple[int, ...]
    source: str
    fallback_reason: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """Where a value comes from.

    Attributes:
        layers: the layers directly behind it: number of ways, and whether by a shortcut.
        activations: the activations it has just passed.
        ancestors: bit set of everything it depends on; bit 0 is the model's input, bit i + 1 layer i.
        depth: largest depth among ``layers``, -1 for the model's input.
        learned: names of learned tensors it consists of that no layer has used yet.
    """

    layers: Mapping[int, tuple[int, bool]] = field(default_factory=dict)
    activations: frozenset[int] = frozenset()
    ancestors: int = 0
    depth: int = -1
    learned: tuple[str, ...] = ()


NOTHING = Flow()
MODEL_INPUT = Flow(ancestors=1)


@dataclass(slots=True)
class _Draft:
    layer_id: str
    type: str
    channels: tuple[float, float]
    module: nn.Module | None
    parameters: tuple[nn.Parameter, ...]
    depth: int = 0
    ancestors: int = 0
    activation_type: str = ""
    dropout_rate: float = 0.0

    def finished(self) -> Layer:
        return Layer(
            self.layer_id,
            self.type,
            self.depth,
            *self.channels,
            self.activation_type,
            self.dropout_rate,
            self.module,
            self.parameters,
        )


class StructureBuilder:
    """Collects nodes and edges while flows pass through it."""

    def __init__(self) -> None:
        self._layers: list[_Draft] = []
        self._layer_of: dict[object, int] = {}
        self._activations: list[Activation] = []
        self._activation_of: dict[nn.Module, int] = {}
        self._activation_ids: set[str] = set()
        self._functions: list[int] = []
        self._connects: dict[tuple[int, int], tuple[int, bool]] = {}
        # dicts keep the order in which edges were found, so that equal models have equal blueprints
        self._feeds: dict[tuple[int, int], None] = {}
        self._influences: dict[tuple[int, int], None] = {}

    def knows(self, key: object) -> bool:
        """Return whether the layer ``key`` (its module, or its first learned tensor) was used."""
        return key in self._layer_of

    def module_layer(self, name: str, module: nn.Module, inputs: Flow) -> Flow:
        """Pass ``inputs`` through the layer ``module``. A second call adds edges to the same node."""
        parameters = tuple(module.parameters())
        return self._layer(
            module, _Draft(name, layer_type(module), channels_of(module), module, parameters), inputs
        )

    def learned_layer(
        self,
        name: str,
        kind: str,
        channels: tuple[float, float],
        parameters: tuple[nn.Parameter, ...],
        inputs: Flow,
    ) -> Flow:
        """Pass ``inputs`` through a function on learned tensors that belong to no layer module."""
        return self._layer(parameters[0], _Draft(name, kind, channels, None, parameters), inputs)

    def activation(self, name: str, kind: str, inputs: Flow, module: nn.Module | None = None) -> Flow:
        """Pass ``inputs`` through an activation. A module called twice stays one node, a function does not."""
        position = self._activation_of.get(module) if module is not None else None
        if position is None:
            position = len(self._activations)
            self._activations.append(Activation(self._unique(name), kind, module))
            if module is None:
                self._functions.append(position)
            else:
                self._activation_of[module] = position
        self._feeds.update(dict.fromkeys((layer, position) for layer in inputs.layers))
        for layer in inputs.layers:
            self._layers[layer].activation_type = self._layers[layer].activation_type or kind
        return Flow(inputs.layers, frozenset({position}), inputs.ancestors, inputs.depth)

    def dropout(self, rate: float, inputs: Flow) -> Flow:
        """Note that what the layers behind ``inputs`` put out is dropped at ``rate``; the first one counts."""
        for layer, (_, residual) in inputs.layers.items():
            if not residual:
                self._layers[layer].dropout_rate = self._layers[layer].dropout_rate or rate
        return inputs

    def finish(self, source: str, fallback_reason: str = "") -> ModelStructure:
        """Return the collected structure."""
        return ModelStructure(
            layers=tuple(draft.finished() for draft in self._layers),
            activations=tuple(self._activations),
            connects=tuple(Connection(*ends, *flow) for ends, flow in self._connects.items()),
            feeds=tuple(self._feeds),
            influences=tuple(self._influences),
            functions=tuple(self._functions),
            source=source,
            fallback_reason=fallback_reason,
        )

    def _layer(self, key: object, draft: _Draft, inputs: Flow) -> Flow:
        position = self._layer_of.get(key)
        if position is None:
            position = self._layer_of[key] = len(self._layers)
            draft.depth = inputs.depth + 1
            self._layers.append(draft)
        node = self._layers[position]
        node.ancestors |= inputs.ancestors
        for source, (paths, residual) in inputs.layers.items():
            if source != position:  # a layer called twice in a row does not connect to itself
                known, shortcut = self._connects.get((source, position), (0, False))
                self._connects[source, position] = (known + paths, shortcut or residual)
        self._influences.update(dict.fromkeys((activation, position) for activation in sorted(inputs.activations)))
        return Flow({position: (1, False)}, ancestors=node.ancestors | 2 << position, depth=node.depth)

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self._activation_ids:
            number += 1
            candidate = f"{name}_{number}"
        self._activation_ids.add(candidate)
        return candidate


def merged(flows: Iterable[Flow]) -> Flow:
    """Return the flow of a value computed from several."""
    return reduce(_merged, flows, NOTHING)


def added(flows: Iterable[Flow]) -> Flow:
    """Return the flow of a sum. Of two operands with a common origin the shallower one is the shortcut."""
    return reduce(_added, flows)


def _merged(first: Flow, second: Flow) -> Flow:
    layers = dict(first.layers)
    for layer, (paths, residual) in second.layers.items():
        known, shortcut = layers.get(layer, (0, False))
        layers[layer] = (known + paths, shortcut or residual)
    return Flow(
        layers,
        first.activations | second.activations,
        first.ancestors | second.ancestors,
        max(first.depth, second.depth),
        tuple(dict.fromkeys(first.learned + second.learned)),
    )


def _added(first: Flow, second: Flow) -> Flow:
    if first.ancestors & second.ancestors and first.depth != second.depth:
        deep, shallow = (first, second) if first.depth > second.depth else (second, first)
        return _merged(deep, _as_shortcut(shallow))
    return _merged(first, second)


def _as_shortcut(flow: Flow) -> Flow:
    """Return ``flow`` as the shortcut of an addition.

    What came into it by an older shortcut stays behind: it reaches the sum through the nearer layers already, and
    with it a residual stream of n blocks would have n² / 2 edges.
    """
    near = [layer for layer, (_, residual) in flow.layers.items() if not residual] or list(flow.layers)
    layers = {layer: (flow.layers[layer][0], True) for layer in near}
    return Flow(layers, flow.activations, flow.ancestors, flow.depth, flow.learned)
