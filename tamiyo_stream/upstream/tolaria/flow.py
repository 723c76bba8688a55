"""From a traced graph of operations to the structure of a model: who feeds whom.

Operations are handled by name: additions mark shortcuts, activation functions become activation nodes, functions
on learned tensors become layers, questions about shapes carry no data, everything else only hands data on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from tamiyo_stream.upstream.tolaria.activation_types import ActivationType, activation_of_function
from tamiyo_stream.upstream.tolaria.layer_types import is_leaf
from tamiyo_stream.upstream.tolaria.module_tree import add_unused_tensors, pass_through
from tamiyo_stream.upstream.tolaria.structure import (
    MODEL_INPUT,
    NOTHING,
    Flow,
    ModelStructure,
    StructureBuilder,
    added,
    merged,
)

_ADDITIONS = frozenset({"add", "iadd", "add_"})
_DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_"}
)
#: Answers about a tensor that are no function of its values.
_SHAPE_QUESTIONS = frozenset({"size", "dim", "numel", "ndimension", "stride", "shape", "device", "dtype", "ndim"})
#: Functions that are layers when given learned tensors, with the layer type they stand for.
_FUNCTIONAL_LAYERS: dict[str, str] = {
    **{name: name for name in ("linear", "bilinear", "embedding", "embedding_bag", "layer_norm", "group_norm")},
    **{name: name for name in ("rms_norm", "batch_norm", "instance_norm")},
    **{name: name for name in ("conv1d", "conv2d", "conv3d")},
    **{name: name for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"), "linear"),
}
_PROBABILITY_AT = 1  # position of `p` in every functional dropout


def flow_through(graph: fx.Graph, model: nn.Module, scopes: Mapping[str, tuple[str, type]]) -> ModelStructure:
    """Return the structure that ``graph`` describes. ``scopes``: node name -> module path it was traced in."""
    reader = _GraphReader(model, scopes)
    for node in graph.nodes:
        reader.read(node)
    reader.add_what_was_not_called()
    return reader.builder.finish("fx")


class _GraphReader:
    def __init__(self, model: nn.Module, scopes: Mapping[str, tuple[str, type]]) -> None:
        self.builder = StructureBuilder()
        self._model = model
        self._scopes = scopes
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters())
        self._owners = _layer_modules(model)
        self._flows: dict[fx.Node, Flow] = {}

    def read(self, node: fx.Node) -> None:
        """Add what ``node`` contributes."""
        self._flows[node] = self._HANDLERS[node.op](self, node)

    def add_what_was_not_called(self) -> None:
        """Add layers and learned tensors that the traced call did not use, without edges."""
        for name, module in self._owners.items():
            if not self.builder.knows(module) and next(module.parameters(), None) is not None:
                pass_through(self.builder, name, module, MODEL_INPUT)
        for name, module in self._modules.items():
            if not any(name == owner or name.startswith(f"{owner}.") for owner in self._owners):
                add_unused_tensors(self.builder, name, module)

    def _input(self, node: fx.Node) -> Flow:  # noqa: ARG002 - one signature for all handlers
        return MODEL_INPUT

    def _attribute(self, node: fx.Node) -> Flow:
        name = str(node.target)
        return Flow(learned=(name,)) if name in self._parameters else NOTHING

    def _module(self, node: fx.Node) -> Flow:
        name = str(node.target)
        return pass_through(self.builder, name, self._modules[name], self._data_of(node))

    def _function(self, node: fx.Node) -> Flow:
        name = _function_name(node)
        if name in _SHAPE_QUESTIONS:
            return NOTHING
        inputs = [self._flows[source] for source in node.all_input_nodes]
        learned = tuple(name for flow in inputs for name in flow.learned)
        if learned and name in _FUNCTIONAL_LAYERS:
            return self._learned_layer(_FUNCTIONAL_LAYERS[name], learned, merged(inputs))
        if learned and not any(flow.ancestors for flow in inputs):
            return merged(inputs)  # a view of a learned tensor, as its transpose
        flows = [self._as_data(flow) for flow in inputs]
        activation = activation_of_function(name)
        if activation is not None and _has_data(flows):
            return self._activation(node, activation, merged(flows))
        if name in _DROPOUTS:
            return self.builder.dropout(_probability_of(node), merged(flows))
        combine = added if name in _ADDITIONS and len(flows) > 1 else merged
        return combine(flows)

    def _activation(self, node: fx.Node, activation: ActivationType, inputs: Flow) -> Flow:
        scope = self._scopes.get(node.name, ("", type))[0]
        name = f"{scope}.{activation.name}" if scope else activation.name
        return self.builder.activation(name, activation.name, inputs)

    def _learned_layer(self, kind: str, learned: tuple[str, ...], inputs: Flow) -> Flow:
        data = Flow(inputs.layers, inputs.activations, inputs.ancestors, inputs.depth)
        owner = next((name for name in self._owners if learned[0].startswith(f"{name}.")), None)
        if owner is not None:  # weights shared with a layer module: one more call of that layer
            return self.builder.module_layer(owner, self._owners[owner], data)
        tensors = tuple(self._parameters[name] for name in learned)
        name = learned[0].removesuffix(".weight")
        return self.builder.learned_layer(name, kind, _widths_of(kind, tensors[0]), tensors, data)

    def _as_data(self, flow: Flow) -> Flow:
        """Return ``flow`` with the learned tensors in it turned into layers of their own (position tables)."""
        if not flow.learned:
            return flow
        layers = [self._learned_layer("parameter", (name,), NOTHING) for name in flow.learned]
        rest = Flow(flow.layers, flow.activations, flow.ancestors, flow.depth)
        return merged([*layers, rest])

    def _data_of(self, node: fx.Node) -> Flow:
        return merged(self._as_data(self._flows[source]) for source in node.all_input_nodes)

    def _output(self, node: fx.Node) -> Flow:
        return self._data_of(node)

    _HANDLERS: dict[str, Callable[[_GraphReader, fx.Node], Flow]] = {
        "placeholder": _input,
        "get_attr": _attribute,
        "call_module": _module,
        "call_function": _function,
        "call_method": _function,
        "output": _output,
    }


def _layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the leaf modules of ``model`` by name, nothing below them."""
    leaves: dict[str, nn.Module] = {}
    within = ""
    for name, module in model.named_modules():
        if within and name.startswith(within):
            continue
        within = ""
        if name and is_leaf(module):
            leaves[name] = module
            within = f"{name}."
    return leaves


def _function_name(node: fx.Node) -> str:
    """Return the plain name of what ``node`` calls; reading an attribute counts as a call of its name."""
    if node.op == "call_method":
        return str(node.target)
    name = str(getattr(node.target, "__name__", node.target))
    if name == "getattr":
        return str(node.args[1])
    return name


def _has_data(flows: list[Flow]) -> bool:
    return any(flow.ancestors for flow in flows)


def _probability_of(node: fx.Node) -> float:
    arguments: tuple[Any, ...] = node.args
    given: Any = node.kwargs.get("p", arguments[_PROBABILITY_AT] if len(arguments) > _PROBABILITY_AT else 0.5)
    return float(given) if isinstance(given, int | float) else 0.0


def _widths_of(kind: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Return input and output width of a function of type ``kind`` on the weight ``tensor``."""
    if kind == "parameter" or tensor.dim() == 0:
        return math.nan, math.nan
    last = float(tensor.shape[-1])
    if tensor.dim() == 1:
        return last, last
    if kind.startswith("embedding"):
        return float(tensor.shape[0]), last
    return float(tensor.shape[1]), float(tensor.shape[0])
