"""Several step graphs as one disconnected graph, and the outputs apart again (batching as PyG does it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES, EdgeType
from tamiyo_stream.graph.structures import FloatArray, IndexArray, StepGraph

#: Node type along whose nodes an output runs; all other outputs have one row per graph.
_NODE_OUTPUTS: Mapping[str, str] = {
    "seed_scores": "seed",
    "seed_schedule": "seed",
    "blueprint_scores": "blueprint",
    "layer_attention": "layer",
    "seed_attention": "seed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B graphs as tensors; ``TamiyoGNN.forward`` takes the fields of the same names.

    ``batch``: [N_layer] graph of every layer node. ``offsets``: [B + 1] first node of each graph by node type.
    ``edge_rank_dict`` is empty unless a graph is sampled.
    """

    x_dict: Mapping[str, Tensor] = field(repr=False)
    edge_index_dict: Mapping[EdgeType, Tensor] = field(repr=False)
    edge_attr_dict: Mapping[EdgeType, Tensor] = field(repr=False)
    batch: Tensor = field(repr=False)
    batch_size: int
    offsets: Mapping[str, IndexArray] = field(repr=False)
    edge_rank_dict: Mapping[EdgeType, Tensor] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``, itself if it is there; pinned memory is copied without blocking."""
        if self.batch.device == device:
            return self
        return Batch(
            x_dict={key: value.to(device, non_blocking=True) for key, value in self.x_dict.items()},
            edge_index_dict={
                key: value.to(device, non_blocking=True) for key, value in self.edge_index_dict.items()
            },
            edge_attr_dict={
                key: value.to(device, non_blocking=True) for key, value in self.edge_attr_dict.items()
            },
            batch=self.batch.to(device, non_blocking=True),
            batch_size=self.batch_size,
            offsets=self.offsets,
            edge_rank_dict={
                key: value.to(device, non_blocking=True) for key, value in self.edge_rank_dict.items()
            },
        )

    def split(self, outputs: Mapping[str, FloatArray]) -> Iterator[dict[str, FloatArray]]:
        """Yield each graph's share of ``outputs``, in order: its row, of a node output its nodes' rows."""
        for index in range(self.batch_size):
            yield {name: value[self._share(name, index)] for name, value in outputs.items()}

    def _share(self, name: str, index: int) -> int | slice:
        if name not in _NODE_OUTPUTS:
            return index
        start, stop = self.offsets[_NODE_OUTPUTS[name]][index : index + 2]
        return slice(start, stop)


def collate(graphs: Sequence[StepGraph]) -> Batch:
    """Return ``graphs`` as one batch on the CPU.

    A single graph's features are shared with the graph, not copied, unless its arrays are read-only. Relations
    without edges are left out.

    Raises:
        ValueError: no graph.
    """
    if not graphs:
        raise ValueError("graphs is empty; a batch needs at least one graph")
    offsets = {
        name: np.cumsum([0, *(len(graph.topology.node_ids[name]) for graph in graphs)], dtype=np.int64)
        for name in NODES
    }
    present = [key for key in EDGE_TYPES if any(len(graph.topology.edges[key]) for graph in graphs)]
    return Batch(
        x_dict={name: _stack([graph.x_dict[name] for graph in graphs]) for name in NODES},
        edge_index_dict={key: torch.from_numpy(_edge_index(graphs, key, offsets)) for key in present},
        edge_attr_dict={key: _stack([graph.edge_attr_dict[key] for graph in graphs]) for key in present},
        batch=torch.from_numpy(np.repeat(np.arange(len(graphs)), np.diff(offsets["layer"]))),
        batch_size=len(graphs),
        offsets=offsets,
        edge_rank_dict=_ranks(graphs, present),
    )


def _ranks(graphs: Sequence[StepGraph], present: Sequence[EdgeType]) -> dict[EdgeType, Tensor]:
    """Return the rank of every edge; those of a graph that is not sampled are 0, so that all stages use them."""
    return {
        key: torch.from_numpy(
            np.concatenate(
                [
                    graph.topology.ranks.get(key, np.zeros(len(graph.topology.edges[key]), np.int64))
                    for graph in graphs
                ]
            )
        )
        for key in present
        if any(key in graph.topology.ranks for graph in graphs)
    }


def _stack(arrays: Sequence[FloatArray]) -> Tensor:
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return torch.from_numpy(np.require(joined, np.float32, ["C", "W"]))


def _edge_index(graphs: Sequence[StepGraph], key: EdgeType, offsets: Mapping[str, IndexArray]) -> IndexArray:
    edges = [graph.topology.edges[key] for graph in graphs]
    index = np.empty((2, sum(map(len, edges))), np.int64)
    position = 0
    for number, part in enumerate(edges):
        end = position + len(part)
        np.add(part.source, offsets[key[0]][number], out=index[0, position:end])
        np.add(part.target, offsets[key[2]][number], out=index[1, position:end])
        position = end
    return index
