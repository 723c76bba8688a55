"""The plan executor gives the reference's numbers, on graphs of every shape, alone and in batches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES
from tamiyo_stream.inference import executor as executor_module
from tamiyo_stream.inference import weights
from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.products import Precision, onednn, plain
from tamiyo_stream.inference.self_test import choose_products
from tamiyo_stream.inference.synthetic import synthetic_graph
from tamiyo_stream.model.network import TamiyoGNN
from tests.inference.samples import (
    SHAPES,
    along_plan,
    assert_close,
    by_reference,
    graph_of,
    plan_of,
    sampled,
    trained_network,
)
from tests.model.samples import with_edges

#: Largest deviation relative to an output's largest element, and what that element counts as at least: a single
#: value that happens to be near zero is not computed more exactly for it.
FLOAT32 = (1e-5, 0.5)
BFLOAT16 = (2e-2, 1.0)
#: With one layer nothing averages the rounding out. Autocast leaves 5e-2 here.
BFLOAT16_ONE_LAYER = (5e-2, 1.0)


@pytest.fixture(scope="module")
def network() -> TamiyoGNN:
    return trained_network()


@pytest.fixture(scope="module")
def exact_network(network) -> TamiyoGNN:
    return copy.deepcopy(network).double()


@pytest.fixture(scope="module")
def plain_executor(network) -> PlanExecutor:
    return PlanExecutor(network, products=plain())


@pytest.fixture(scope="module")
def executor(network) -> PlanExecutor:
    return PlanExecutor(network, products=onednn())


@pytest.fixture(scope="module")
def half_executor(network) -> PlanExecutor:
    return PlanExecutor(network, products=onednn("bf16"), precision="bf16")


@pytest.mark.parametrize("shape", [*SHAPES, "many pieces"])
def test_every_output_is_the_references(network, executor, plain_executor, shape) -> None:
    graph = graph_of(shape)
    expected = by_reference(network, graph)
    assert_close(along_plan(executor, graph), expected, *FLOAT32)
    assert_close(along_plan(plain_executor, graph), expected, *FLOAT32)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.fixed_dictionaries({name: st.integers(0, 9) for name in NODES}),
    degree=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_output_of_any_graph_is_the_networks(exact_network, executor, counts, degree, seed) -> None:
    """Which is evaluated in float64: against its float32, both roundings add up."""
    graph = synthetic_graph(counts, degree=degree, seed=seed)
    assert_close(along_plan(executor, graph), by_reference(exact_network, graph), *FLOAT32)


@pytest.mark.parametrize("edge_type", EDGE_TYPES, ids="-".join)
def test_a_relation_alone_gets_the_references_numbers(network, executor, edge_type) -> None:
    full = graph_of("every relation")
    edges = full.topology.edges[edge_type]
    graph = with_edges(full, {edge_type: list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))})
    assert_close(along_plan(executor, graph), by_reference(network, graph), *FLOAT32)


def test_a_graph_without_edges_gets_the_references_numbers(network, executor) -> None:
    graph = with_edges(graph_of("every relation"), {})
    assert_close(along_plan(executor, graph), by_reference(network, graph), *FLOAT32)


def test_attention_of_which_every_exponential_underflows_is_the_references() -> None:
    """Each score is about -300: only against the highest of its target is there anything left."""
    network = trained_network()
    for stage in list(network.stages)[2:]:
        for relation in stage.convs.convs.values():
            torch.nn.init.ones_(relation.conv.att_edge)
            torch.nn.init.constant_(
                relation.conv.lin_edge.weight,
                -1500 / relation.conv.lin_edge.weight[: relation.conv.out_channels].numel(),
            )
    full = graph_of("every relation")
    edges = full.topology.edges
    pairs = {key: list(zip(edges[key].source.tolist(), edges[key].target.tolist(), strict=True)) for key in edges}
    graph = with_edges(full, pairs)  # whose attributes are all 1
    found = along_plan(PlanExecutor(network, products=onednn()), graph)
    assert_close(found, by_reference(network, graph), 1e-3, 0.5)


@pytest.mark.parametrize("index", [-3.0, 1e6])
def test_categories_out_of_range_are_looked_up_as_the_reference_does(network, executor, index) -> None:
    graph = graph_of("every relation")
    for name, schema in NODES.items():
        graph.x_dict[name][:, [schema.slots[channel.name].start for channel in schema.categories]] = index
    assert_close(along_plan(executor, graph), by_reference(network, graph), *FLOAT32)


def test_whatever_else_a_category_block_holds_is_ignored(network, executor) -> None:
    graph = graph_of("every relation")
    expected = by_reference(network, graph)
    for name, schema in NODES.items():
        for channel in schema.categories:
            block = schema.slots[channel.name]
            graph.x_dict[name][:, block.start + 1 : block.stop] = 7.0
    assert_close(along_plan(executor, graph), expected, *FLOAT32)


def test_graphs_in_a_batch_get_the_references_numbers(network, executor) -> None:
    graphs = [graph_of(shape, seed) for seed, shape in enumerate(SHAPES)]
    assert_close(along_plan(executor, *graphs), by_reference(network, *graphs), *FLOAT32)


@pytest.mark.parametrize("shape", ["crowded", "every relation"])
def test_a_sampled_graph_gets_the_references_numbers(network, executor, shape) -> None:
    graph = sampled(graph_of(shape))
    expected = by_reference(network, graph)
    assert_close(along_plan(executor, graph), expected, *FLOAT32)
    everything = by_reference(network, graph_of(shape))
    assert not torch.allclose(expected["policy_logits"], everything["policy_logits"], atol=1e-4)


def test_sampled_and_whole_graphs_share_a_batch(network, executor) -> None:
    graphs = [sampled(graph_of("crowded")), graph_of("crowded", 1), graph_of("every relation")]
    assert_close(along_plan(executor, *graphs), by_reference(network, *graphs), *FLOAT32)
    (alone,) = [along_plan(executor, graphs[1])]
    together = along_plan(executor, *graphs)
    torch.testing.assert_close(together["policy_logits"][1:2], alone["policy_logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_gets_the_same_bits_alone_and_in_any_batch(network, precision: Precision) -> None:
    """Wherever the products' rows do not depend on how many there are, which the self-test finds out."""
    products = onednn(precision)
    found = next(
        candidate for candidate in choose_products(precision, 1).report if candidate.name == products.name
    )
    executor = PlanExecutor(network, products=products, precision=precision)
    graphs = [graph_of(shape, seed) for seed, shape in enumerate(SHAPES)]
    for others in (graphs[::-1], graphs[1:4]):
        batch = collate(others)
        together = {name: value.numpy() for name, value in executor(batch, plan_of(batch)).items()}
        for graph, share in zip(others, batch.split(together), strict=True):
            alone = {name: value.numpy() for name, value in along_plan(executor, graph).items()}
            for name, value in share.items():
                expected = alone[name].reshape(value.shape)
                if found.same_in_any_batch:
                    np.testing.assert_array_equal(value, expected, err_msg=f"{name} of {graph.packet_id}")
                else:
                    np.testing.assert_allclose(value, expected, atol=1e-2, err_msg=name)


def test_a_second_forward_leaves_the_first_ones_outputs_alone(executor) -> None:
    batch = collate([graph_of("every relation")])
    plan = plan_of(batch)
    first = executor(batch, plan)
    kept = {name: value.clone() for name, value in first.items()}
    along_plan(executor, graph_of("wide"))
    again = executor(batch, plan)
    for name, value in kept.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_close_to_the_reference(network, half_executor, shape) -> None:
    graph = graph_of(shape, 1)
    bound = BFLOAT16_ONE_LAYER if shape == "one layer" else BFLOAT16
    assert_close(along_plan(half_executor, graph), by_reference(network, graph), *bound)


def test_bfloat16_chooses_the_same_action(network, half_executor) -> None:
    """On at least 99 of 100 random graphs."""
    graphs = [graph_of("every relation", seed) for seed in range(100)]
    expected = by_reference(network, *graphs)["policy_logits"].argmax(dim=1)
    found = along_plan(half_executor, *graphs)["policy_logits"].argmax(dim=1)
    assert (found == expected).float().mean() >= 0.99


def test_seeds_and_kernels_are_scored_more_exactly_than_bfloat16_alone_would(network, monkeypatch) -> None:
    graphs = [graph_of("every relation", seed) for seed in range(10)]
    expected = by_reference(network, *graphs)

    def error() -> float:
        found = along_plan(PlanExecutor(network, products=onednn("bf16"), precision="bf16"), *graphs)
        return sum(
            float((found[name] - expected[name]).square().mean().sqrt())
            for name in ("seed_scores", "blueprint_scores")
        )

    exact = error()
    for module in (weights, executor_module):
        monkeypatch.setattr(module, "EXACT_TYPES", ())
    assert exact < 0.6 * error()


def test_no_state_or_weight_of_the_network_is_changed(network, executor) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    graph = graph_of("every relation")
    rows = {name: value.copy() for name, value in graph.x_dict.items()}
    along_plan(executor, graph)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in graph.x_dict.items():
        np.testing.assert_array_equal(value, rows[name])


def test_global_settings_of_torch_are_left_alone(network) -> None:
    before = (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled())
    along_plan(PlanExecutor(network, products=choose_products("bf16", 1), precision="bf16"), graph_of("wide"))
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_products_of_another_precision_are_refused(network) -> None:
    with pytest.raises(ValueError, match="products 'onednn' are bf16, precision is fp32"):
        PlanExecutor(network, products=onednn("bf16"))
