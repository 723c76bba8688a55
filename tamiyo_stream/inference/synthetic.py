"""Random step graphs that obey the feature and relation tables: for warm-up, benchmarks and tests.

Only the tables are followed, not the meaning of training: numbers are normal, categories and edges uniform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from tamiyo_stream.graph.features import NODES, NodeSchema
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, RELATIONS, EdgeType
from tamiyo_stream.graph.structures import Coverage, FloatArray, IndexArray, RelationEdges, StepGraph, Topology

#: Nodes of a small graph in which every relation has edges.
SMALL: Mapping[str, int] = {
    "layer": 12,
    "seed": 3,
    "activation": 6,
    "parameter": 4,
    "blueprint": 3,
    "context": 1,
}
#: Nodes of a graph like that of a model of some hundred layers, for warm-up.
REPRESENTATIVE: Mapping[str, int] = {
    "layer": 600,
    "seed": 16,
    "activation": 250,
    "parameter": 8,
    "blueprint": 8,
    "context": 1,
}


def synthetic_graph(
    counts: Mapping[str, int] = SMALL, *, degree: int = 2, seed: int = 0, run_id: str = "synthetic"
) -> StepGraph:
    """Return a random graph with ``counts`` nodes by type (absent = 0); equal arguments give equal graphs.

    In every relation the larger side's nodes have ``degree`` random partners each: a graph has edges of each
    relation whose two node types it has.
    """
    random = np.random.default_rng(seed)
    sizes = {name: counts.get(name, 0) for name in NODES}
    edges: dict[EdgeType, RelationEdges] = {}
    attributes: dict[EdgeType, FloatArray] = {}
    for relation in RELATIONS:
        left, right = _partners(random, sizes[relation.source], sizes[relation.target], degree)
        edges[relation.edge_type] = _edges(left, right, sizes[relation.target])
        edges[relation.reverse_type] = _edges(right, left, sizes[relation.source])
    for edge_type, relation in BY_EDGE_TYPE.items():
        shape = (len(edges[edge_type]), relation.width)
        attributes[edge_type] = random.random(shape, dtype=np.float32)
    return StepGraph(
        run_id=run_id,
        packet_id=f"{run_id}-step-{seed}",
        global_step=seed,
        topology=Topology(
            structure_hash=_structure_hash(sizes, edges),
            node_ids={name: tuple(f"{name}-{index}" for index in range(size)) for name, size in sizes.items()},
            edges=edges,
        ),
        x_dict={name: _rows(random, schema, sizes[name]) for name, schema in NODES.items()},
        edge_attr_dict=attributes,
        coverage=Coverage(keys={}, types={}, average=1.0, mandatory=1.0),
    )


def _partners(
    random: np.random.Generator, sources: int, targets: int, degree: int
) -> tuple[IndexArray, IndexArray]:
    if not sources or not targets:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if sources > targets:
        right, left = _partners(random, targets, sources, degree)
        return left, right
    target = np.repeat(np.arange(targets), min(degree, sources))
    return random.integers(0, sources, len(target)), target


def _edges(source: IndexArray, target: IndexArray, targets: int) -> RelationEdges:
    order = np.argsort(target, kind="stable")
    indptr = np.zeros(targets + 1, np.int64)
    np.cumsum(np.bincount(target, minlength=targets), out=indptr[1:])
    return RelationEdges(source[order], target[order], indptr)


def _rows(random: np.random.Generator, schema: NodeSchema, size: int) -> FloatArray:
    rows = np.zeros((size, schema.raw_width), np.float32)
    rows[:, : schema.used_width] = random.standard_normal((size, schema.used_width), dtype=np.float32)
    rows[:, list(schema.mask_slots.values())] = 1.0
    for channel in schema.categories:
        block = schema.slots[channel.name]
        rows[:, block] = 0.0
        rows[:, block.start] = random.integers(0, channel.capacity, size)
    return rows


def _structure_hash(sizes: Mapping[str, int], edges: Mapping[EdgeType, RelationEdges]) -> str:
    digest = hashlib.sha256(repr(sorted(sizes.items())).encode())
    for edge_type in sorted(edges):
        digest.update("/".join(edge_type).encode())
        digest.update(edges[edge_type].source.tobytes())
        digest.update(edges[edge_type].target.tobytes())
    return digest.hexdigest()
