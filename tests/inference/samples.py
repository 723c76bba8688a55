"""Graphs of every shape, a network in which every parameter matters, and both ways to evaluate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.plan import ExecutionPlan, build_plan
from tamiyo_stream.inference.synthetic import synthetic_graph
from tamiyo_stream.model.network import TamiyoGNN, build_network

#: Nodes by type, and how many partners each node of a relation's larger side has.
SHAPES: Mapping[str, tuple[Mapping[str, int], int]] = {
    "every relation": (
        {"layer": 12, "seed": 3, "activation": 6, "parameter": 4, "blueprint": 3, "context": 1},
        2,
    ),
    "one to one": (
        {"layer": 20, "seed": 20, "activation": 20, "parameter": 20, "blueprint": 20, "context": 1},
        1,
    ),
    "no seeds and kernels": ({"layer": 28, "activation": 8, "parameter": 1, "context": 1}, 2),
    "one layer": ({"layer": 1, "seed": 1, "context": 1}, 2),
    "no layers": ({"seed": 2, "blueprint": 1, "context": 1}, 2),
    "empty": ({}, 1),
    "wide": ({"layer": 200, "seed": 40, "activation": 90, "parameter": 30, "blueprint": 24, "context": 1}, 3),
    "crowded": ({"layer": 40, "seed": 30, "activation": 4, "parameter": 3, "blueprint": 30, "context": 1}, 30),
}
#: More layers, and more targets of one relation's attention, than go through an operation at a time.
MANY_PIECES = ({"layer": 4500, "activation": 1500, "parameter": 2}, 1)


def graph_of(shape: str, seed: int = 0) -> StepGraph:
    """A random graph of one of ``SHAPES``, or of ``many pieces``."""
    counts, degree = SHAPES.get(shape, MANY_PIECES)
    return synthetic_graph({name: counts.get(name, 0) for name in NODES}, degree=degree, seed=seed)


def trained_network(seed: int = 3) -> TamiyoGNN:
    """A network whose biases and norms are no longer the zeros and ones they start as."""
    network = build_network(seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    return network


def sampled(graph: StepGraph, seed: int = 0) -> StepGraph:
    """The graph with a random order of strength among the in-edges of every node."""
    random = np.random.default_rng(seed)
    ranks = {}
    for edge_type, edges in graph.topology.edges.items():
        rank = np.empty(len(edges), np.int64)
        for start, end in zip(edges.indptr[:-1], edges.indptr[1:], strict=True):
            rank[start:end] = random.permutation(end - start)
        ranks[edge_type] = rank
    return replace(graph, topology=replace(graph.topology, ranks=ranks))


def plan_of(batch: Batch, heads: int = 4) -> ExecutionPlan:
    """The plan of a collated batch."""
    counts = {name: len(rows) for name, rows in batch.x_dict.items()}
    return build_plan(batch.edge_index_dict, counts, heads, ranks=batch.edge_rank_dict, offsets=batch.offsets)


def along_plan(executor: PlanExecutor, *graphs: StepGraph) -> dict[str, Tensor]:
    """One forward of the executor."""
    batch = collate(graphs)
    return executor(batch, plan_of(batch))


def by_reference(network: TamiyoGNN, *graphs: StepGraph) -> dict[str, Tensor]:
    """One forward of the network, in the type of its parameters."""
    batch = collate(graphs)
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        return dict(
            network(
                {name: rows.to(dtype) for name, rows in batch.x_dict.items()},
                batch.edge_index_dict,
                {key: rows.to(dtype) for key, rows in batch.edge_attr_dict.items()},
                batch.batch,
                batch.batch_size,
                edge_rank_dict=batch.edge_rank_dict,
                with_attention=True,
            )
        )


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float, floor: float) -> None:
    """Every output deviates by at most ``bound`` of its largest element, which counts as ``floor`` at least."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = found[name]
        assert ours.shape == theirs.shape, name
        assert ours.dtype == torch.float32, name
        if not theirs.numel():
            continue
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=floor)
        assert error <= bound, f"{name}: {error:.1e}"
