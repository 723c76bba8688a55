"""The execution plan: what a forward needs to know of a topology, worked out once (design §8).

Edges come sorted by destination, so a relation's messages are bags of source rows: one fused gather-and-reduce
instead of gather, multiply and scatter. Rows without a neighbour are left out; the network's masks zero them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tamiyo_stream.graph.relations import EdgeType


@dataclass(frozen=True, slots=True, eq=False)
class RelationPlan:
    """One relation of a topology, E edges into M destinations that have a neighbour; H attention heads.

    Attributes:
        source: [E] source node of each edge. bag: [E] position of its destination among ``rows``.
        rows: [M] destinations with a neighbour; None where that is every node of the type.
        offsets: [M] first edge of each destination.
        head_source: [E * H] row of each edge and head in a table of [N_source * H] projected rows.
        head_offsets: [M] first entry of each destination in ``head_source``.
    """

    source: Tensor
    bag: Tensor
    rows: Tensor | None
    offsets: Tensor
    head_source: Tensor
    head_offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True, eq=False)
class ExecutionPlan:
    """The relations of a topology that have edges."""

    relations: Mapping[EdgeType, RelationPlan]


def build_plan(
    edge_index_dict: Mapping[EdgeType, Tensor], node_counts: Mapping[str, int], heads: int
) -> ExecutionPlan:
    """Return the plan for relations whose edges [2, E] are sorted by destination."""
    return ExecutionPlan(
        {
            edge_type: _relation_plan(index, node_counts[edge_type[2]], heads)
            for edge_type, index in edge_index_dict.items()
            if index.shape[1]
        }
    )


def _relation_plan(edge_index: Tensor, targets: int, heads: int) -> RelationPlan:
    source, target = edge_index[0].contiguous(), edge_index[1]
    rows, bag, counts = torch.unique_consecutive(target, return_inverse=True, return_counts=True)
    offsets = torch.cumsum(counts, 0) - counts
    return RelationPlan(
        source=source,
        bag=bag,
        rows=None if len(rows) == targets else rows,
        offsets=offsets,
        head_source=(source[:, None] * heads + torch.arange(heads)).flatten(),
        head_offsets=offsets * heads,
    )
