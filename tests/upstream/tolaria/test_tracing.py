"""The structure of real models: layers, activations and data flow as their forward functions have them."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from tamiyo_stream.upstream.tolaria.structure import ModelWithoutParameters
from tamiyo_stream.upstream.tolaria.tracing import derive_structure
from tests.upstream.tolaria.host_models import (
    CharTransformer,
    DataDependent,
    Learned,
    Mlp,
    PartlyTraceable,
    ResidualCnn,
    encoder,
)


def names(structure):
    return [layer.layer_id for layer in structure.layers]


def connections(structure, *, residual=None):
    ids = names(structure)
    return {
        (ids[edge.source], ids[edge.target])
        for edge in structure.connects
        if residual is None or edge.residual is residual
    }


def feeds(structure):
    return {
        (structure.layers[layer].layer_id, structure.activations[activation].activation_id)
        for layer, activation in structure.feeds
    }


def influences(structure):
    return {
        (structure.activations[activation].activation_id, structure.layers[layer].layer_id)
        for activation, layer in structure.influences
    }


def layer(structure, name):
    return next(layer for layer in structure.layers if layer.layer_id == name)


def test_an_mlp_is_a_chain_with_its_functional_activations():
    structure = derive_structure(Mlp())

    assert structure.source == "fx"
    assert names(structure) == ["first", "second", "last"]
    assert connections(structure) == {("first", "second"), ("second", "last")}
    assert feeds(structure) == {("first", "relu"), ("second", "tanh")}
    assert influences(structure) == {("relu", "second"), ("tanh", "last")}
    assert [layer.depth for layer in structure.layers] == [0, 1, 2]


def test_layers_know_type_widths_activation_and_dropout():
    second = layer(derive_structure(Mlp()), "second")

    assert (second.type, second.input_channels, second.output_channels) == ("linear", 16, 16)
    assert (second.activation_type, second.dropout_rate) == ("tanh", 0.25)
    assert layer(derive_structure(Mlp()), "last").activation_type == ""


def test_shortcuts_of_a_residual_network_are_marked():
    structure = derive_structure(ResidualCnn())

    # An identity shortcut skips a block, a projected one is the shallower branch of the sum.
    assert connections(structure, residual=True) == {
        ("stem", "blocks.1.conv1"),
        ("stem", "blocks.1.shortcut"),
        ("blocks.1.shortcut", "pool"),
    }
    assert ("blocks.0.bn2", "blocks.1.conv1") in connections(structure, residual=False)
    assert ("blocks.1.bn2", "pool") in connections(structure, residual=False)


def test_an_activation_module_called_twice_is_one_node():
    structure = derive_structure(ResidualCnn())

    assert [activation.activation_id for activation in structure.activations] == ["blocks.0.relu", "blocks.1.relu"]
    assert {
        ("blocks.0.bn1", "blocks.0.relu"),
        ("blocks.0.bn2", "blocks.0.relu"),
        ("stem", "blocks.0.relu"),
    } < feeds(structure)


def test_pooling_is_a_layer_and_flattening_is_not():
    structure = derive_structure(ResidualCnn())

    assert layer(structure, "pool").type == "adaptive_avg_pool2d"
    assert ("pool", "head") in connections(structure)


def test_a_transformer_is_traced_through_assertion_positions_and_attention():
    structure = derive_structure(CharTransformer(depth=2))

    assert structure.source == "fx"
    assert connections(structure, residual=False) >= {
        ("tok", "blocks.0.ln1"),
        ("pos", "blocks.0.ln1"),
        ("blocks.0.ln1", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv", "blocks.0.attn.proj"),
        ("blocks.0.mlp.0", "blocks.0.mlp.2"),
        ("norm", "head"),
    }
    assert ("blocks.0.attn.qkv", "blocks.0.attn.attention") in feeds(structure)
    assert ("blocks.0.attn.attention", "blocks.0.attn.proj") in influences(structure)


def test_query_key_and_value_of_one_projection_are_three_paths():
    structure = derive_structure(CharTransformer(depth=1))
    ids = names(structure)

    [edge] = [
        edge
        for edge in structure.connects
        if (ids[edge.source], ids[edge.target]) == ("blocks.0.attn.qkv", "blocks.0.attn.proj")
    ]
    assert edge.paths == 3


def test_the_residual_stream_has_a_number_of_edges_linear_in_depth():
    edges = [len(derive_structure(CharTransformer(depth=depth)).connects) for depth in (2, 4, 8)]

    assert edges[2] - edges[1] == 2 * (edges[1] - edges[0])


def test_tied_weights_belong_to_both_layers():
    model = CharTransformer()
    structure = derive_structure(model)

    assert layer(structure, "tok").parameters[0] is layer(structure, "head").parameters[0]


def test_a_function_on_anothers_weights_is_one_more_call_of_that_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.body = nn.Linear(4, 4)

        def forward(self, tokens):
            return functional.linear(self.body(self.table(tokens)), self.table.weight)

    structure = derive_structure(Tied())

    assert names(structure) == ["table", "body"]
    assert connections(structure) == {("table", "body"), ("body", "table")}


def test_a_learned_tensor_of_a_composite_module_is_a_layer_of_its_own():
    structure = derive_structure(Learned())

    assert layer(structure, "offset").type == "parameter"
    assert connections(structure) == {("first", "last"), ("offset", "last")}


def test_a_functional_layer_takes_the_name_of_its_weight():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))
            self.bias = nn.Parameter(torch.ones(3))
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            return self.last(functional.silu(functional.linear(x, self.weight, self.bias)))

    weight = layer(derive_structure(Bare()), "weight")

    assert (weight.type, weight.input_channels, weight.output_channels) == ("linear", 5, 3)
    assert (weight.activation_type, len(weight.parameters)) == ("silu", 2)


def test_pytorchs_own_transformer_layer_is_looked_into():
    structure = derive_structure(encoder())

    assert structure.source == "fx"
    assert names(structure) == ["self_attn", "norm1", "linear1", "linear2", "norm2"]
    assert layer(structure, "self_attn").type == "multihead_attention"
    assert ("norm1", "norm2") in connections(structure, residual=True)


def test_a_nested_transformer_encoder_is_looked_into():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 16)
            self.body = nn.TransformerEncoder(encoder(), 2)

        def forward(self, tokens):
            return self.body(self.embed(tokens))

    structure = derive_structure(Nested())

    assert structure.source == "fx"
    assert ("body.layers.0.norm2", "body.layers.1.self_attn") in connections(structure)


def test_a_layer_that_the_forward_does_not_call_is_listed_without_edges():
    model = Mlp()
    model.unused = nn.Linear(2, 2)
    structure = derive_structure(model)

    assert names(structure) == ["first", "second", "last", "unused"]
    assert not any("unused" in edge for edge in connections(structure))


class Branches(nn.Module):
    """Takes a side that depends on the data."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)

    def forward(self, x):
        return self.first(x) if x.sum() > 0 else -self.first(x)


@pytest.mark.parametrize("model", [DataDependent(), PartlyTraceable(), Branches()], ids=["loop", "part", "branch"])
def test_a_data_dependent_model_falls_back_to_the_module_tree_and_says_so(model, caplog):
    with caplog.at_level(logging.WARNING, logger="tamiyo.probe"):
        structure = derive_structure(model)

    assert structure.source == "module_tree"
    [record] = caplog.records
    assert f"{type(model).__name__} cannot be traced ({structure.fallback_reason})" in record.getMessage()


def test_the_module_tree_is_a_chain_in_registration_order():
    structure = derive_structure(DataDependent())

    assert names(structure) == ["enter", "cell", "leave"]
    assert connections(structure) == {("enter", "cell"), ("cell", "leave")}
    assert feeds(structure) == {("cell", "relu")}
    assert influences(structure) == {("relu", "leave")}


def test_a_model_that_is_one_layer_has_one_node():
    structure = derive_structure(nn.LSTM(3, 4))

    assert [(layer.layer_id, layer.type) for layer in structure.layers] == [("lstm", "lstm")]


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.Flatten()), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_with_nothing_to_train_is_refused(model):
    with pytest.raises(ModelWithoutParameters, match="no trainable parameter"):
        derive_structure(model)


def test_tracing_leaves_attributes_buffers_and_random_state_as_they_were():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.calls = 0
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x):
            self.calls += 1
            self.seen = x
            self.total = self.total + x.sum(0)
            return self.first(x + torch.rand(3) + torch.ones(3))

    model = Writes()
    before, total, random_state = set(vars(model)), model.total, torch.get_rng_state()
    structure = derive_structure(model)

    assert structure.source == "fx"
    assert (set(vars(model)), model.calls) == (before, 0)
    assert model.total is total
    assert torch.equal(torch.get_rng_state(), random_state)


def test_tracing_does_not_run_the_users_hooks_and_leaves_them_removable():
    model, seen = ResidualCnn(), []
    handles = [module.register_forward_hook(lambda *args: seen.append(args)) for module in model.modules()]
    derive_structure(model)

    assert not seen
    for handle in handles:
        handle.remove()
    model(torch.ones(1, 1, 4, 4))
    assert not seen


def test_a_layer_called_in_a_fixed_loop_is_one_node_without_an_edge_to_itself():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4)
            self.last = nn.Linear(4, 1)

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.cell(x))
            return self.last(x)

    structure = derive_structure(Loop())

    assert names(structure) == ["cell", "last"]
    assert connections(structure) == {("cell", "last")}
    assert influences(structure) >= {("tanh", "cell"), ("tanh_2", "last")}


def test_a_buffer_cut_to_a_traced_size_is_no_obstacle_and_no_layer():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.register_buffer("mask", torch.ones(16))

        def forward(self, x):
            return self.first(x) * self.mask[: x.shape[1]]

    structure = derive_structure(Masked())

    assert (structure.source, names(structure)) == ("fx", ["first"])


def test_equal_models_have_equal_structures():
    first, second = derive_structure(CharTransformer()), derive_structure(CharTransformer())

    assert names(first) == names(second)
    assert (first.connects, first.feeds, first.influences) == (second.connects, second.feeds, second.influences)


def test_widths_are_absent_where_a_layer_has_none():
    assert math.isnan(layer(derive_structure(ResidualCnn()), "pool").input_channels)
