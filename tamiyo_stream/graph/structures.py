"""What the graph stage hands on: the cached topology and one step's graph (design §6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo_stream.graph.relations import EdgeType

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

#: Most in-edges of a node per relation in each of the four stages, where a graph is larger than the limits
#: (requirements ``000`` "Graph Schema Definition").
NEIGHBOUR_CAPS = (25, 10, 5, 5)


@dataclass(frozen=True, slots=True, eq=False)
class RelationEdges:
    """Edges of one edge type, sorted by destination (stable).

    ``source``, ``target``: [E] node positions; ``indptr``: [N_target + 1] CSR pointers over ``target``.
    """

    source: IndexArray
    target: IndexArray
    indptr: IndexArray

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Everything about a graph that does not change from step to step.

    ``structure_hash`` is the SHA-256 (hex) over node counts, all edges and their ranks: equal hashes mean that an
    execution plan built for one graph serves the other. Every edge type of the relation table is a key of
    ``edges``, empty where the graph has none; every node type is a key of ``node_ids``. ``ranks`` is empty unless
    the graph was larger than the limits; then it holds, per edge type, [E] the rank of each edge among those into
    its destination, strongest first from 0: stage *k* uses the edges whose rank is below ``NEIGHBOUR_CAPS[k]``.
    The edges into a destination then lie in the order of their ranks.
    """

    structure_hash: str
    node_ids: Mapping[str, tuple[str, ...]]
    edges: Mapping[EdgeType, RelationEdges] = field(repr=False)
    ranks: Mapping[EdgeType, IndexArray] = field(default_factory=dict, repr=False)

    @property
    def node_counts(self) -> dict[str, int]:
        """Nodes by type."""
        return {node_type: len(ids) for node_type, ids in self.node_ids.items()}

    @property
    def num_nodes(self) -> int:
        """Nodes of all types."""
        return sum(self.node_counts.values())

    @property
    def num_edges(self) -> int:
        """Edges of all types, reverses included."""
        return sum(len(edges) for edges in self.edges.values())


@dataclass(frozen=True, slots=True)
class Coverage:
    """What upstream actually sent, never what a default filled in (``domain.md`` §6.4).

    ``keys``: share present per key (``layer.weight_norm``, ``edges.layer_connects.latency_ms``); ``types``:
    count-weighted share per family (``node.layer``, ``edges.layer_connects``); ``average``: mean over keys;
    ``mandatory``: mean over the keys of mandatory features. Ratios 0..1.
    """

    keys: Mapping[str, float]
    types: Mapping[str, float]
    average: float
    mandatory: float


@dataclass(frozen=True, slots=True, eq=False)
class StepGraph:
    """One training step as a heterogeneous graph.

    ``x_dict``: [N_t, raw width] float32 per node type; ``edge_attr_dict``: [E_r, attribute width] float32 per edge
    type, rows in the topology's edge order. ``seed_ids`` and ``kernel_ids`` name the ``seed`` and ``blueprint``
    nodes in order. ``problems``: what upstream sent but the graph could not use, for logs and telemetry, bounded
    in number and length. ``sampled_edges``: edges that the neighbour caps left out. ``learned_fallbacks``: nodes
    that rest on a learned embedding because Urza's tables lack their entry: the host's blueprint, a seed's
    attached kernel, an activation's function.
    """

    run_id: str
    packet_id: str
    global_step: int
    topology: Topology
    x_dict: Mapping[str, FloatArray] = field(repr=False)
    edge_attr_dict: Mapping[EdgeType, FloatArray] = field(repr=False)
    coverage: Coverage = field(repr=False)
    problems: tuple[str, ...] = ()
    sampled_edges: int = 0
    learned_fallbacks: int = 0

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Names of the ``layer`` nodes in order."""
        return self.topology.node_ids["layer"]

    @property
    def seed_ids(self) -> tuple[str, ...]:
        """Names of the ``seed`` nodes in order."""
        return self.topology.node_ids["seed"]

    @property
    def kernel_ids(self) -> tuple[str, ...]:
        """Names of the ``blueprint`` nodes (candidate kernels) in order."""
        return self.topology.node_ids["blueprint"]

    def to_hetero_data(self) -> Any:
        """Return the graph as a PyG ``HeteroData`` (copies nothing; needs torch-geometric)."""
        from tamiyo_stream.graph.interop import to_hetero_data  # noqa: PLC0415 - keeps torch out of the builder

        return to_hetero_data(self)
