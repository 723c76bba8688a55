"""The execution plan of one topology, or of several side by side as ``collate`` lays their graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES, EdgeType
from tamiyo_stream.graph.structures import IndexArray, Topology
from tamiyo_stream.inference.plan import ExecutionPlan, build_plan


def plan_of(topologies: Sequence[Topology], *, heads: int) -> ExecutionPlan:
    """Return the plan of ``topologies`` as one graph, for a network of ``heads`` attention heads."""
    offsets = {
        name: np.cumsum([0, *(len(topology.node_ids[name]) for topology in topologies)], dtype=np.int64)
        for name in NODES
    }
    present = [key for key in EDGE_TYPES if any(len(topology.edges[key]) for topology in topologies)]
    return build_plan(
        {key: _edge_index(topologies, key, offsets) for key in present},
        {name: int(ends[-1]) for name, ends in offsets.items()},
        heads,
        ranks={key: _ranks(topologies, key) for key in present if any(key in t.ranks for t in topologies)},
        offsets=offsets,
    )


def _edge_index(topologies: Sequence[Topology], key: EdgeType, offsets: Mapping[str, IndexArray]) -> Tensor:
    parts = [
        np.stack([edges.source + offsets[key[0]][number], edges.target + offsets[key[2]][number]])
        for number, edges in enumerate(topology.edges[key] for topology in topologies)
    ]
    return torch.from_numpy(np.concatenate(parts, axis=1))


def _ranks(topologies: Sequence[Topology], key: EdgeType) -> Tensor:
    """Return the rank of every edge; those of a graph that was not sampled are 0, so that all stages use them."""
    return torch.from_numpy(
        np.concatenate(
            [topology.ranks.get(key, np.zeros(len(topology.edges[key]), np.int64)) for topology in topologies]
        )
    )
