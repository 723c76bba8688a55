"""The reference network keeps design §7 and none of the prototype's faults (``domain.md`` §10.1)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES, aggregation_of
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS
from tamiyo_stream.inference.collate import collate
from tamiyo_stream.model.config import POLICY_PARAM_NAMES, TamiyoGNNConfig
from tamiyo_stream.model.convolutions import GATRelation, SAGERelation
from tamiyo_stream.model.network import READOUT_TYPES, TamiyoGNN, build_network
from tests.model.samples import evaluate, forward, random_step_graph, tensors, with_edges

CONNECTS = ("layer", "connects", "layer")


def test_every_head_has_the_shape_of_the_design(network: TamiyoGNN) -> None:
    outputs = evaluate(
        network, random_step_graph(1), random_step_graph(2, seeds=1, kernels=5), with_attention=True
    )
    assert {name: tuple(value.shape) for name, value in tensors(outputs).items()} == {
        "policy_logits": (2, 32),
        "policy_params": (2, 32, 4),
        "risk_logits": (2, 5),
        "value_estimate": (2, 1),
        "blending_method_logits": (2, 4),
        "telemetry_embedding": (2, 64),
        "graph_embedding": (2, 128),
        "seed_scores": (4,),
        "seed_schedule": (4, 2),
        "blueprint_scores": (8,),
        "layer_attention": (24,),
        "seed_attention": (4,),
    }


def test_continuous_outputs_are_bounded_and_named(network: TamiyoGNN) -> None:
    outputs = evaluate(network, random_step_graph(1))
    assert outputs["policy_params"].abs().max() <= 1
    assert outputs["seed_schedule"].abs().max() <= 1
    assert outputs["policy_params"].shape[-1] == len(POLICY_PARAM_NAMES)


def test_policy_is_a_distribution_that_favours_no_action_by_construction() -> None:
    tops = set()
    for seed in range(4):
        logits = evaluate(build_network(seed=seed), random_step_graph(seed))["policy_logits"][0]
        probabilities = torch.softmax(logits, 0)
        assert probabilities.min() >= 0
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
        tops.add(int(logits.argmax()))
    assert len(tops) > 1


def test_five_evaluations_of_one_graph_are_bit_equal(network: TamiyoGNN) -> None:
    graph = random_step_graph(3)
    first = tensors(evaluate(network, graph))
    for _ in range(4):
        again = tensors(evaluate(network, graph))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_dropout_is_live_in_training() -> None:
    network = build_network(seed=1).train()
    graph = random_step_graph(3)
    assert not torch.equal(evaluate(network, graph)["policy_logits"], evaluate(network, graph)["policy_logits"])


def test_a_stage_drops_a_fifth_of_its_update_in_training_and_never_the_residual() -> None:
    stage = build_network(seed=1).train().stages[0]
    h_dict = {name: torch.ones(50, width) for name, width in (("layer", 256), ("activation", 128))}
    h_dict |= {name: torch.ones(1, 256) for name in NODES if name not in h_dict}
    torch.manual_seed(0)
    unchanged = stage(h_dict, {}, {}, {}, {})["layer"] == h_dict["layer"]
    assert unchanged.float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_gradients_reach_every_parameter() -> None:
    """Two context nodes: with one, softmax over a single edge leaves nothing to learn about its attention."""
    network = build_network(seed=1).train()
    outputs = forward(network, collate([random_step_graph(5, layers=40, seeds=6, kernels=6, contexts=2)]))
    sum(value.square().sum() for value in tensors(outputs).values()).backward()
    assert [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ] == []


def test_it_learns_a_small_task() -> None:
    """Value = mean of one numeric channel of the layers, over four graphs."""
    network = build_network(seed=2)
    graphs = [random_step_graph(seed, layers=4) for seed in range(4)]
    slot = NODES["layer"].slots["weight_norm"].start
    target = torch.tensor([[float(graph.x_dict["layer"][:, slot].mean())] for graph in graphs])
    batch = collate(graphs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(forward(network, batch)["value_estimate"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize(
    "counts",
    [
        {"layers": 1, "seeds": 0, "kernels": 0, "activations": 0, "parameters": 0},
        {"seeds": 0, "kernels": 0},
        {"layers": 0},
        {"layers": 0, "seeds": 0, "activations": 0, "parameters": 0, "kernels": 0, "contexts": 0},
    ],
    ids=["one layer", "no seeds", "no layers", "empty"],
)
def test_a_degenerate_graph_has_finite_outputs(network: TamiyoGNN, counts: dict[str, int]) -> None:
    outputs = tensors(evaluate(network, random_step_graph(1, **counts), with_attention=True))
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert outputs["policy_logits"].shape == (1, 32)


def test_a_graph_without_layers_has_a_zero_embedding(network: TamiyoGNN) -> None:
    outputs = evaluate(network, random_step_graph(1, layers=0), random_step_graph(2))
    assert not outputs["graph_embedding"][0].any()
    assert outputs["graph_embedding"][1].any()


def test_nodes_without_any_edge_are_evaluated(network: TamiyoGNN) -> None:
    outputs = tensors(evaluate(network, with_edges(random_step_graph(1), {}), with_attention=True))
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert not outputs["layer_attention"].any()


def test_the_graph_embedding_is_the_mean_over_layers_only(network: TamiyoGNN) -> None:
    lone = with_edges(random_step_graph(1, layers=2), {})
    whole = evaluate(network, lone)["graph_embedding"][0]
    batch = collate([lone])
    halves = [
        network({"layer": batch.x_dict["layer"][index : index + 1]}, {})["graph_embedding"][0] for index in (0, 1)
    ]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


def test_a_graph_has_the_same_outputs_alone_and_in_a_batch(network: TamiyoGNN) -> None:
    graphs = [random_step_graph(1), random_step_graph(2, layers=30, seeds=1), random_step_graph(3, seeds=0)]
    batch = collate(graphs)
    together = tensors(forward(network, batch, with_attention=True))
    shares = batch.split({name: value.detach().numpy() for name, value in together.items()})
    for graph, share in zip(graphs, shares, strict=True):
        alone = tensors(evaluate(network, graph, with_attention=True))
        for name, value in share.items():
            expected = alone[name].numpy()
            np.testing.assert_allclose(value, expected.reshape(value.shape), atol=1e-5, rtol=1e-4, err_msg=name)


def test_batch_size_is_read_off_the_batch_vector(network: TamiyoGNN) -> None:
    batch = collate([random_step_graph(1), random_step_graph(2)])
    outputs = network(batch.x_dict, batch.edge_index_dict, batch.edge_attr_dict, batch.batch)
    assert outputs["policy_logits"].shape == (2, 32)


def test_missing_edge_attributes_count_as_zeros(network: TamiyoGNN) -> None:
    batch = collate([random_step_graph(1)])
    zeros = {key: torch.zeros_like(value) for key, value in batch.edge_attr_dict.items()}
    bare = network(batch.x_dict, batch.edge_index_dict)["policy_logits"]
    assert torch.equal(bare, network(batch.x_dict, batch.edge_index_dict, zeros)["policy_logits"])
    full = network(batch.x_dict, batch.edge_index_dict, batch.edge_attr_dict)["policy_logits"]
    assert not torch.equal(bare, full)


def test_an_empty_relation_is_as_good_as_an_absent_one(network: TamiyoGNN) -> None:
    batch = collate([with_edges(random_step_graph(1), {CONNECTS: [(0, 1)]})])
    empty = {key: torch.empty(2, 0, dtype=torch.long) for key in EDGE_TYPES if key != CONNECTS}
    absent = network(batch.x_dict, batch.edge_index_dict)["policy_logits"]
    assert torch.equal(absent, network(batch.x_dict, {**batch.edge_index_dict, **empty})["policy_logits"])


def test_rows_of_another_width_are_refused_by_name(network: TamiyoGNN) -> None:
    with pytest.raises(ValueError, match=r"x_dict\['seed'\] has rows of 63 slots"):
        network({"seed": torch.zeros(2, 63)}, {})


def test_each_stage_uses_the_edges_below_its_cap() -> None:
    network = build_network(seed=1)
    seen: list[tuple[int, int]] = []
    for stage in network.stages:
        stage.register_forward_pre_hook(
            lambda _, arguments: seen.append((arguments[1][CONNECTS].shape[1], len(arguments[2][CONNECTS])))
        )
    graph = with_edges(random_step_graph(1, layers=31), {CONNECTS: [(source, 0) for source in range(31)]})
    batch = collate([graph])
    ranks = torch.arange(31).flip(0)
    network(batch.x_dict, batch.edge_index_dict, batch.edge_attr_dict, edge_rank_dict={CONNECTS: ranks})
    assert seen == [(cap, cap) for cap in NEIGHBOUR_CAPS]


def test_the_strongest_edges_are_the_ones_that_count(network: TamiyoGNN) -> None:
    """Rank 25 and above is never used; one edge of rank 0 is used by every stage."""
    pairs = [(1, 0), (2, 0)]
    graph = with_edges(random_step_graph(1), {CONNECTS: pairs})
    batch = collate([graph])
    ranked = network(
        batch.x_dict,
        batch.edge_index_dict,
        batch.edge_attr_dict,
        edge_rank_dict={CONNECTS: torch.tensor([NEIGHBOUR_CAPS[0], 0])},
    )
    expected = evaluate(network, with_edges(random_step_graph(1), {CONNECTS: pairs[1:]}))
    assert torch.equal(ranked["policy_logits"], expected["policy_logits"])


def test_relations_without_ranks_keep_all_their_edges(network: TamiyoGNN) -> None:
    batch = collate([random_step_graph(1)])
    ranks = {CONNECTS: torch.zeros(batch.edge_index_dict[CONNECTS].shape[1], dtype=torch.long)}
    arguments = batch.x_dict, batch.edge_index_dict, batch.edge_attr_dict
    whole = network(*arguments)["policy_logits"]
    assert torch.equal(network(*arguments, edge_rank_dict=ranks)["policy_logits"], whole)


@pytest.mark.parametrize("relation", ["sage", "gat"])
def test_a_relation_contributes_only_to_nodes_with_a_neighbour(relation: str) -> None:
    """Also when the relation's biases, zero at first, have been trained."""
    edges = torch.tensor([[0, 1], [2, 2]])
    mask = torch.tensor([[0.0], [0.0], [1.0]])
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(3))
    if relation == "sage":
        module, arguments = SAGERelation(CONNECTS, (256, 256), 256), (x, edges, mask)
    else:
        module = GATRelation(CONNECTS, (256, 256), 128, TamiyoGNNConfig())
        arguments = (x, edges, torch.ones(2, 8), mask)
    nn.init.ones_(module.norm.bias)
    out = module.eval()(*arguments)
    assert not out[:2].any()
    assert out[2].any()


def test_a_node_without_neighbours_is_as_in_a_graph_without_edges() -> None:
    network = build_network(seed=1)
    for name, parameter in network.named_parameters():
        if name.endswith(("norm.bias", "conv.bias")):
            nn.init.ones_(parameter)
    graph = with_edges(random_step_graph(1, seeds=3), {("layer", "monitored_by", "seed"): [(0, 0)]})
    some, none = (evaluate(network, each)["seed_scores"] for each in (graph, with_edges(graph, {})))
    assert torch.equal(some[1:], none[1:])
    assert not torch.equal(some[:1], none[:1])


def test_a_source_without_edges_changes_no_other_node(network: TamiyoGNN) -> None:
    graph = with_edges(random_step_graph(1, seeds=3), {("seed", "monitors", "layer"): [(0, 0), (1, 1)]})
    changed = {name: rows.copy() for name, rows in graph.x_dict.items()}
    changed["seed"][2] += 1.0
    before = evaluate(network, graph)
    batch = collate([graph])
    after = network({name: torch.from_numpy(rows) for name, rows in changed.items()}, batch.edge_index_dict)
    bare = network(batch.x_dict, batch.edge_index_dict)
    assert torch.equal(after["graph_embedding"], bare["graph_embedding"])
    assert torch.equal(after["seed_scores"][:2], bare["seed_scores"][:2])
    assert not torch.equal(after["seed_scores"][2], before["seed_scores"][2])


def test_the_aggregation_is_the_relation_tables() -> None:
    """For a max relation, the smaller of two one-signed neighbours does not matter; for a mean it does."""
    smaller = torch.zeros(2, 256)
    larger = torch.ones(1, 256)
    edges, mask = torch.tensor([[0, 2], [0, 0]]), torch.ones(1, 1)
    for edge_type in EDGE_TYPES:
        relation = SAGERelation(edge_type, (256, 256), 256)
        first = relation((torch.cat([smaller, larger]), torch.zeros(1, 256)), edges, mask)
        lifted = torch.cat([torch.rand(2, 256) * 0.9, larger])
        second = relation((lifted, torch.zeros(1, 256)), edges, mask)
        assert torch.allclose(first, second) == (aggregation_of(edge_type) == "max"), edge_type


def test_every_edge_type_has_a_convolution_in_every_stage_that_updates_its_target(network: TamiyoGNN) -> None:
    for number, stage in enumerate(network.stages):
        expected = [key for key in EDGE_TYPES if number < 3 or key[2] in READOUT_TYPES]
        assert list(stage.edge_types) == expected
        assert len(stage.convs.convs) == len(expected)


def test_the_update_is_the_formula_of_the_design(network: TamiyoGNN) -> None:
    """New state = res(h) + GELU(W h + (1/R) Σ m_r): the layer nodes of stage 3, where the width changes."""
    stage = network.stages[2]
    batch = collate([random_step_graph(4)])
    h_dict = {
        name: torch.randn(len(rows), 128 if name == "activation" else 256) for name, rows in batch.x_dict.items()
    }
    masks = {
        key: torch.zeros(len(h_dict[key[2]]), 1).index_fill_(0, index[1], 1.0)
        for key, index in batch.edge_index_dict.items()
    }
    into = [key for key in EDGE_TYPES if key[2] == "layer"]
    messages = sum(
        stage.convs.convs[key](
            (h_dict[key[0]], h_dict["layer"]), batch.edge_index_dict[key], batch.edge_attr_dict[key], masks[key]
        )
        for key in into
    )
    h = h_dict["layer"]
    expected = stage.residuals["layer"](h) + nn.functional.gelu(stage.roots["layer"](h) + messages / len(into))
    out = stage(h_dict, batch.edge_index_dict, batch.edge_attr_dict, masks, {})["layer"]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert "layer" not in network.stages[1].residuals


def test_dropouts_and_widths_are_those_of_the_requirements(network: TamiyoGNN) -> None:
    gat = [module for module in network.modules() if isinstance(module, GATRelation)]
    assert {(m.conv.heads, m.conv.dropout, m.conv.concat, m.conv.add_self_loops) for m in gat} == {
        (4, 0.1, False, False)
    }
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert network.config.dropout == 0.2
    widths = {name: encoder.linear.out_features for name, encoder in network.encoders.items()}
    assert widths == {name: schema.encoded_width for name, schema in NODES.items()}


def test_attention_mass_counts_every_attended_target_once(network: TamiyoGNN) -> None:
    """Softmax sums to 1 per relation and target: two GAT stages, one target."""
    graph = with_edges(random_step_graph(1), {CONNECTS: [(0, 3), (1, 3)], ("seed", "monitors", "layer"): [(2, 3)]})
    outputs = evaluate(network, graph, with_attention=True)
    assert outputs["layer_attention"].sum().item() == pytest.approx(2, abs=1e-5)
    assert outputs["layer_attention"][2:].abs().max() == 0
    assert outputs["seed_attention"].tolist() == pytest.approx([0, 0, 2], abs=1e-5)
    assert "layer_attention" not in evaluate(network, graph)


def test_building_a_network_is_reproducible_and_leaves_the_global_random_state() -> None:
    state = torch.get_rng_state()
    first, same, other = build_network(seed=1), build_network(seed=1), build_network(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [module.heads.policy[0].weight for module in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.training


def test_building_a_network_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_network()
    assert caught == []
