"""The fallback where a model cannot be traced: its leaf modules in registration order, as a chain.

Registration order is the order of computation in most models. Branches, shortcuts and functional activations are
invisible here, so nothing is said about them.
"""

from __future__ import annotations

import math

from torch import nn

from tamiyo_stream.upstream.tolaria.activation_types import activation_of_module
from tamiyo_stream.upstream.tolaria.layer_types import Role, is_leaf, layer_type, role_of
from tamiyo_stream.upstream.tolaria.structure import MODEL_INPUT, Flow, ModelStructure, StructureBuilder


def structure_of_module_tree(model: nn.Module, reason: str) -> ModelStructure:
    """Return ``model``'s structure as a chain of its leaf modules; ``reason`` says why it was not traced."""
    builder = StructureBuilder()
    flow = MODEL_INPUT
    within = ""
    for name, module in model.named_modules():
        if within and name.startswith(within):
            continue
        within = ""
        if is_leaf(module):
            flow = pass_through(builder, name or layer_type(module), module, flow)
            within = f"{name}." if name else ""
        else:
            add_unused_tensors(builder, name, module)
    return builder.finish("module_tree", reason)


def pass_through(builder: StructureBuilder, name: str, module: nn.Module, inputs: Flow) -> Flow:
    """Pass ``inputs`` through the leaf ``module`` by its role."""
    role = role_of(module)
    if role is Role.LAYER:
        return builder.module_layer(name, module, inputs)
    if role is Role.DROPOUT:
        return builder.dropout(float(getattr(module, "p", 0.0)), inputs)
    activation = activation_of_module(module)
    if activation is not None:
        return builder.activation(name, activation.name, inputs, module)
    return inputs


def add_unused_tensors(builder: StructureBuilder, name: str, module: nn.Module) -> None:
    """Add the learned tensors that ``module`` itself registers and no layer has used, as unconnected layers."""
    prefix = f"{name}." if name else ""
    for tensor_name, tensor in module.named_parameters(recurse=False):
        if not builder.knows(tensor):
            builder.learned_layer(prefix + tensor_name, "parameter", (math.nan, math.nan), (tensor,), MODEL_INPUT)
