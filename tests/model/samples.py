"""Random graphs for the tests of everything behind the graph stage."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.structures import RelationEdges, StepGraph
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.synthetic import synthetic_graph
from tamiyo_stream.model.heads import NetworkOutputs
from tamiyo_stream.model.network import TamiyoGNN


def random_step_graph(
    seed: int = 0,
    *,
    layers: int = 12,
    seeds: int = 3,
    activations: int = 6,
    parameters: int = 4,
    kernels: int = 3,
    contexts: int = 1,
    degree: int = 2,
    run_id: str = "run",
) -> StepGraph:
    """A graph with edges of every relation whose node types it has; equal arguments give equal graphs."""
    counts = {
        "layer": layers,
        "seed": seeds,
        "activation": activations,
        "parameter": parameters,
        "blueprint": kernels,
        "context": contexts,
    }
    return synthetic_graph(counts, degree=degree, seed=seed, run_id=run_id)


def with_edges(graph: StepGraph, edges: dict[EdgeType, list[tuple[int, int]]]) -> StepGraph:
    """The graph with exactly ``edges`` (source, target; sorted by target), attributes of 1, and no others."""
    topology = graph.topology
    kept: dict[EdgeType, RelationEdges] = {}
    attributes = {}
    for edge_type in topology.edges:
        pairs = np.array(edges.get(edge_type, []), np.int64).reshape(-1, 2)
        counts = np.bincount(pairs[:, 1], minlength=topology.node_counts[edge_type[2]])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        kept[edge_type] = RelationEdges(pairs[:, 0].copy(), pairs[:, 1].copy(), indptr)
        attributes[edge_type] = np.ones((len(pairs), graph.edge_attr_dict[edge_type].shape[1]), np.float32)
    structure_hash = hashlib.sha256(f"{topology.structure_hash} {sorted(edges.items())}".encode()).hexdigest()
    changed = replace(topology, edges=kept, structure_hash=structure_hash)
    return replace(graph, topology=changed, edge_attr_dict=attributes)


def evaluate(network: TamiyoGNN, *graphs: StepGraph, with_attention: bool = False) -> NetworkOutputs:
    """One forward over ``graphs`` without gradients."""
    with torch.inference_mode():
        return forward(network, collate(graphs), with_attention=with_attention)


def forward(network: TamiyoGNN, batch: Batch, *, with_attention: bool = False) -> NetworkOutputs:
    """One forward over a collated batch."""
    return network(
        batch.x_dict,
        batch.edge_index_dict,
        batch.edge_attr_dict,
        batch.batch,
        batch.batch_size,
        with_attention=with_attention,
    )


def tensors(outputs: NetworkOutputs) -> dict[str, Tensor]:
    """The outputs as an ordinary mapping."""
    return dict(outputs)
