"""The blueprint on the wire: columns, edges between groups, layers and activations, and a version by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.catalogue import MESSAGES
from schemas.codec import decode_payload, encode_payload
from schemas.enums import BlueprintKind, CompileStatus
from tamiyo_stream.upstream.tolaria.blueprint import build_blueprint
from tamiyo_stream.upstream.tolaria.tracing import derive_structure
from tests.upstream.tolaria.host_models import CharTransformer, Mlp, ResidualCnn


def blueprint_of(model, optimizer=None, run_id="run", issued_at=1):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return build_blueprint(derive_structure(model), model, optimizer, run_id=run_id, issued_at=issued_at)


def two_groups(model):
    """Return an AdamW with weights in one group and biases in the other."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": weights, "name": "weights"}, {"params": biases, "weight_decay": 0.0, "lr": 0.5}]
    return torch.optim.AdamW(groups, lr=0.1)


def pairs(edges):
    return set(zip(edges.source.tolist(), edges.target.tolist(), strict=True))


@pytest.mark.parametrize(
    "model", [Mlp(), ResidualCnn(), CharTransformer()], ids=lambda model: type(model).__name__
)
def test_a_reader_accepts_it(model):
    blueprint = blueprint_of(model)
    read_back = decode_payload(MESSAGES["Blueprint"], encode_payload(blueprint))

    assert read_back.kind is BlueprintKind.HOST
    assert read_back.graph.layers.layer_id == blueprint.graph.layers.layer_id


def test_parameter_counts_are_those_of_the_modules():
    counts = blueprint_of(Mlp()).graph.layers.parameter_count

    assert counts.tolist() == [8 * 16 + 16, 16 * 16 + 16, 16 * 4 + 4]


def test_frozen_tensors_are_not_counted():
    model = Mlp()
    model.first.weight.requires_grad_(False)

    assert blueprint_of(model).graph.layers.parameter_count.tolist()[0] == 16


def test_parameter_groups_tune_the_layers_that_own_their_tensors():
    model = Mlp()
    optimizer = torch.optim.SGD(
        [{"params": model.first.parameters()}, {"params": model.last.parameters()}], lr=0.1
    )
    blueprint = blueprint_of(model, optimizer)

    assert blueprint.graph.parameters.parameter_id == ["group0", "group1"]
    assert pairs(blueprint.graph.adjacency.tunes) == {(0, 0), (1, 2)}


def test_groups_show_their_settings_and_family():
    model = Mlp()
    parameters = blueprint_of(model, two_groups(model)).graph.parameters

    assert parameters.parameter_id == ["weights", "group1"]
    assert parameters.optimizer_family == ["adamw", "adamw"]
    np.testing.assert_allclose(parameters.learning_rate, [0.1, 0.5])
    np.testing.assert_allclose(parameters.momentum, [0.9, 0.9])


def test_activations_are_linked_with_the_groups_of_the_layers_that_feed_them():
    model = Mlp()
    adjacency = blueprint_of(model, two_groups(model)).graph.adjacency

    assert pairs(adjacency.configures) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert pairs(adjacency.modulates) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    # relu is fed by `first`: 128 of its 144 scalars are in the group of weights, which has 448 in all
    assert adjacency.configures.weight[0] == pytest.approx(128 / 144)
    assert adjacency.modulates.weight[0] == pytest.approx(128 / 448)


def test_the_version_depends_on_the_content_alone():
    assert (
        blueprint_of(Mlp(), run_id="a", issued_at=1).blueprint_version
        == blueprint_of(Mlp(), run_id="b", issued_at=2).blueprint_version
    )
    model = Mlp()
    slower = torch.optim.SGD(model.parameters(), lr=0.001)
    assert blueprint_of(model, slower).blueprint_version == blueprint_of(Mlp()).blueprint_version


def test_another_structure_or_optimizer_family_is_another_version():
    tuned, grouped = Mlp(), Mlp()
    blueprints = (
        blueprint_of(Mlp()),
        blueprint_of(CharTransformer(depth=1)),
        blueprint_of(CharTransformer(depth=2)),
        blueprint_of(tuned, torch.optim.Adam(tuned.parameters())),
        blueprint_of(grouped, two_groups(grouped)),
    )
    assert len({blueprint.blueprint_version for blueprint in blueprints}) == len(blueprints)


def test_a_subclassed_optimizer_keeps_its_family():
    class Tuned(torch.optim.Adam):
        pass

    model = Mlp()
    assert blueprint_of(model, Tuned(model.parameters())).graph.parameters.optimizer_family == ["adam"]


def test_a_model_that_nobody_compiled_says_so():
    assert blueprint_of(Mlp()).compiled.status is CompileStatus.EAGER
