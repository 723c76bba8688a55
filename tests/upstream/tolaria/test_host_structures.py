"""The blueprint of real models: which layers, which edges, which activations, by tracing or the module tree."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional

from schemas.codec import encode_payload
from tamiyo_stream.upstream.tolaria.blueprint import build_blueprint
from tamiyo_stream.upstream.tolaria.tracing import derive_structure
from tests.upstream.tolaria import host_models


def blueprint_of(model, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    blueprint = build_blueprint(derive_structure(model), model, optimizer, run_id="run", issued_at=1)
    encode_payload(blueprint)  # readers would take it
    return blueprint


def named(edges, sources, targets):
    return {(sources[s], targets[t]) for s, t in zip(edges.source, edges.target, strict=True)}


def connects(blueprint, residual=None):
    """Return the data-flow edges by name, all of them or those with the residual flag given."""
    edges, ids = blueprint.graph.adjacency.connects, blueprint.graph.layers.layer_id
    return {
        (ids[s], ids[t])
        for s, t, flag in zip(edges.source, edges.target, edges.residual, strict=True)
        if residual in {None, bool(flag)}
    }


def layer_column(blueprint, name):
    return dict(zip(blueprint.graph.layers.layer_id, getattr(blueprint.graph.layers, name), strict=True))


def test_an_mlp_is_a_chain_with_its_functional_activations_and_dropout():
    blueprint = blueprint_of(host_models.Mlp())
    graph = blueprint.graph

    assert graph.source == "fx"
    assert connects(blueprint) == {("first", "second"), ("second", "last")}
    assert layer_column(blueprint, "activation_type") == {"first": "relu", "second": "tanh", "last": ""}
    assert layer_column(blueprint, "dropout_rate") == pytest.approx({"first": 0, "second": 0.25, "last": 0})
    assert layer_column(blueprint, "depth") == {"first": 0, "second": 1, "last": 2}
    assert layer_column(blueprint, "input_channels") == {"first": 8, "second": 16, "last": 16}
    assert layer_column(blueprint, "parameter_count") == {"first": 144, "second": 272, "last": 68}
    activations = graph.activations.activation_id
    assert list(graph.activations.type) == ["relu", "tanh"]
    layers = graph.layers.layer_id
    assert named(graph.adjacency.feeds, layers, activations) == {("first", "relu"), ("second", "tanh")}
    assert named(graph.adjacency.influences, activations, layers) == {("relu", "second"), ("tanh", "last")}


def test_identity_and_projected_shortcuts_are_residual_edges():
    blueprint = blueprint_of(host_models.ResidualCnn())

    assert connects(blueprint, residual=True) == {
        ("stem", "blocks.1.conv1"),
        ("stem", "blocks.1.shortcut"),
        ("blocks.1.shortcut", "pool"),
    }
    assert {("blocks.0.bn2", "blocks.1.conv1"), ("blocks.1.bn2", "pool"), ("pool", "head")} <= connects(
        blueprint, residual=False
    )


def test_a_relu_module_used_twice_is_one_activation_fed_by_both_users():
    blueprint = blueprint_of(host_models.ResidualCnn())
    graph = blueprint.graph

    feeds = named(graph.adjacency.feeds, graph.layers.layer_id, graph.activations.activation_id)
    assert {("blocks.0.bn1", "blocks.0.relu"), ("blocks.0.bn2", "blocks.0.relu")} <= feeds


def test_norms_and_pooling_are_layers():
    types = layer_column(blueprint_of(host_models.ResidualCnn()), "type")

    assert types["blocks.0.bn1"] == "batch_norm2d"
    assert types["pool"] == "adaptive_avg_pool2d"
    assert types["stem"] == "conv2d"


def test_a_transformer_s_residual_stream_attention_and_position_table_are_seen():
    blueprint = blueprint_of(host_models.CharTransformer(depth=1))

    assert blueprint.graph.source == "fx"
    assert connects(blueprint, residual=False) == {
        ("tok", "blocks.0.ln1"),
        ("pos", "blocks.0.ln1"),
        ("blocks.0.ln1", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv", "blocks.0.attn.proj"),
        ("blocks.0.attn.proj", "blocks.0.ln2"),
        ("blocks.0.ln2", "blocks.0.mlp.0"),
        ("blocks.0.mlp.0", "blocks.0.mlp.2"),
        ("blocks.0.mlp.2", "norm"),
        ("norm", "head"),
    }
    assert connects(blueprint, residual=True) == {
        ("tok", "blocks.0.ln2"),
        ("pos", "blocks.0.ln2"),
        ("blocks.0.attn.proj", "norm"),
    }
    assert layer_column(blueprint, "activation_type")["blocks.0.attn.qkv"] == "attention"


def test_the_edges_of_a_residual_stream_grow_with_its_depth_not_with_its_square():
    edges = [len(connects(blueprint_of(host_models.CharTransformer(depth=depth)))) for depth in (4, 8, 12)]

    assert edges[2] - edges[1] == edges[1] - edges[0]


def test_tied_weights_count_for_both_layers():
    counts = layer_column(blueprint_of(host_models.CharTransformer()), "parameter_count")

    assert counts["tok"] == counts["head"] == 20 * 16


def test_torch_s_own_encoder_layer_is_traced():
    blueprint = blueprint_of(host_models.encoder())

    assert blueprint.graph.source == "fx"
    assert layer_column(blueprint, "type")["self_attn"] == "multihead_attention"
    assert ("norm1", "norm2") in connects(blueprint, residual=True)


def test_a_loop_on_data_falls_back_to_the_module_tree_and_says_so(caplog):
    blueprint = blueprint_of(host_models.DataDependent())

    assert blueprint.graph.source == "module_tree"
    assert connects(blueprint) == {("enter", "cell"), ("cell", "leave")}
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "DataDependent" in record.getMessage()


def test_a_parameter_that_a_container_uses_itself_is_a_layer():
    blueprint = blueprint_of(host_models.Learned())

    assert ("offset", "last") in connects(blueprint)
    assert layer_column(blueprint, "type")["offset"] == "parameter"


def test_reading_a_size_is_no_data_flow():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            seen = self.left(x)
            return self.right(torch.zeros(seen.shape[0], 4))

    assert connects(blueprint_of(Sized())) == set()


def test_a_module_called_in_a_fixed_loop_is_one_layer():
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.cell, self.leave = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.enter(x)
            for _ in range(3):
                x = functional.relu(self.cell(x))
            return self.leave(x)

    blueprint = blueprint_of(Looped())

    assert list(blueprint.graph.layers.layer_id) == ["enter", "cell", "leave"]
    assert {("enter", "cell"), ("cell", "leave")} <= connects(blueprint)


def test_tracing_leaves_the_model_and_the_random_state_as_they_were():
    model = host_models.Learned()
    seen = []
    model.first.register_forward_hook(lambda *_: seen.append(1))
    attributes, state = dict(vars(model)), torch.get_rng_state()

    derive_structure(model)

    assert model.seen is None
    assert vars(model).keys() == attributes.keys()
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_groups_tune_the_layers_whose_weights_they_own():
    model = host_models.Mlp()
    optimizer = torch.optim.AdamW(
        [
            {"params": model.first.parameters(), "lr": 0.1},
            {"params": [*model.second.parameters(), *model.last.parameters()], "lr": 0.2},
        ]
    )
    graph = blueprint_of(model, optimizer).graph
    layers, groups = graph.layers.layer_id, graph.parameters.parameter_id
    activations = graph.activations.activation_id

    assert named(graph.adjacency.tunes, groups, layers) == {
        (groups[0], "first"),
        (groups[1], "second"),
        (groups[1], "last"),
    }
    assert named(graph.adjacency.configures, activations, groups) == {("relu", groups[0]), ("tanh", groups[1])}
    assert named(graph.adjacency.modulates, groups, activations) == {(groups[0], "relu"), (groups[1], "tanh")}
    assert list(graph.parameters.learning_rate) == pytest.approx([0.1, 0.2])
    assert list(graph.parameters.momentum) == pytest.approx([0.9, 0.9])
    assert list(graph.parameters.optimizer_family) == ["adamw", "adamw"]
    assert list(graph.parameters.parameter_count) == [144, 340]


def test_equal_structures_have_equal_versions_and_others_another():
    version = blueprint_of(host_models.Mlp()).blueprint_version
    other_weights = host_models.Mlp()
    slower = torch.optim.SGD(other_weights.parameters(), lr=0.01, momentum=0.9)
    deeper = nn.Sequential(host_models.Mlp(), nn.Linear(4, 4))

    assert blueprint_of(other_weights, slower).blueprint_version == version
    assert blueprint_of(deeper).blueprint_version != version
