"""The plan executor gives the reference's numbers, on graphs of every shape, alone and in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference import engine as engine_module
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.plan import build_plan
from tamiyo_stream.inference.synthetic import synthetic_graph
from tamiyo_stream.model.network import build_network
from tests.model.samples import with_edges

HEADS = (
    "policy_logits",
    "policy_params",
    "risk_logits",
    "value_estimate",
    "blending_method_logits",
    "telemetry_embedding",
    "graph_embedding",
    "seed_scores",
    "seed_schedule",
    "blueprint_scores",
    "layer_attention",
    "seed_attention",
)
SHAPES = {
    "every relation": {"layer": 12, "seed": 3, "activation": 6, "parameter": 4, "blueprint": 3, "context": 1},
    "no seeds and kernels": {
        "layer": 28,
        "seed": 0,
        "activation": 8,
        "parameter": 1,
        "blueprint": 0,
        "context": 1,
    },
    "one layer": {"layer": 1, "seed": 1, "activation": 0, "parameter": 0, "blueprint": 0, "context": 1},
    "no layers": {"layer": 0, "seed": 2, "activation": 0, "parameter": 0, "blueprint": 1, "context": 1},
    "wide": {"layer": 200, "seed": 40, "activation": 90, "parameter": 30, "blueprint": 24, "context": 1},
}


def engine_with(executor: str) -> InferenceEngine:
    return InferenceEngine(build_network(seed=3), policy_version="v", policy_digest="d", executor=executor)


@pytest.fixture(scope="module")
def plan() -> InferenceEngine:
    return engine_with("plan")


@pytest.fixture(scope="module")
def reference() -> InferenceEngine:
    return engine_with("reference")


def assert_same(found, expected) -> None:
    for head in HEADS:
        ours, theirs = np.asarray(getattr(found, head)), np.asarray(getattr(expected, head))
        scale = np.abs(theirs).max(initial=0.05)  # a head near zero is compared by its usual size
        assert np.abs(ours - theirs).max(initial=0) <= 1e-5 * scale, head


def graph_of(shape: str, seed: int = 0) -> StepGraph:
    return synthetic_graph({name: SHAPES[shape].get(name, 0) for name in NODES}, seed=seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_head_is_the_references(plan, reference, shape, seed) -> None:
    graph = graph_of(shape, seed)
    assert_same(plan.infer([graph])[0], reference.infer([graph])[0])


def test_graphs_in_a_batch_get_the_references_numbers(plan, reference) -> None:
    graphs = [graph_of(shape, seed) for seed, shape in enumerate(SHAPES)]
    for found, expected in zip(plan.infer(graphs), reference.infer(graphs), strict=True):
        assert_same(found, expected)


def test_a_graph_without_edges_gets_the_references_numbers(plan, reference) -> None:
    graph = with_edges(graph_of("every relation"), {})
    assert_same(plan.infer([graph])[0], reference.infer([graph])[0])


@pytest.mark.parametrize("edge_type", EDGE_TYPES, ids="-".join)
def test_a_relation_alone_gets_the_references_numbers(plan, reference, edge_type) -> None:
    full = graph_of("every relation")
    edges = full.topology.edges[edge_type]
    graph = with_edges(full, {edge_type: list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))})
    assert_same(plan.infer([graph])[0], reference.infer([graph])[0])


def test_nodes_without_a_neighbour_are_left_out_of_a_plan() -> None:
    index = torch.tensor([[4, 0, 1], [1, 1, 3]])
    relation = build_plan({("layer", "connects", "layer"): index}, {"layer": 5}, 2).relations[
        ("layer", "connects", "layer")
    ]
    assert relation.rows is not None
    assert relation.rows.tolist() == [1, 3]
    assert relation.offsets.tolist() == [0, 2]
    assert relation.bag.tolist() == [0, 0, 1]
    assert relation.head_source.tolist() == [8, 9, 0, 1, 2, 3]
    assert relation.head_offsets.tolist() == [0, 4]


def test_a_plan_is_built_once_per_structure_and_the_oldest_leaves(monkeypatch) -> None:
    built = []
    monkeypatch.setattr(engine_module, "MAX_PLANS", 2)
    monkeypatch.setattr(engine_module, "build_plan", lambda *arguments: built.append(1) or build_plan(*arguments))
    fresh = engine_with("plan")
    first, second, third = (graph_of("one layer", 0), graph_of("no seeds and kernels"), graph_of("every relation"))
    for graph in (first, first, second, first):
        fresh.infer([graph])
    assert len(built) == 2
    fresh.infer([third])  # `second` is the oldest
    fresh.infer([first])
    assert len(built) == 3
    fresh.infer([second])
    assert len(built) == 4
