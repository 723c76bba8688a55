"""What an execution plan is made of: the parts of a stage, as index lists (design §8).

A stage's messages come in *blocks*: rows of one relation that are made in one way. A row is a message as it leaves
the relation's LayerNorm, and is made once however many targets receive it:

* a target with a single neighbour receives what any other such target of the same source does, so those rows are
  the distinct sources, without aggregation (and in GAT without attention: a softmax over one edge is 1);
* targets with more neighbours have a row each, aggregated before the projection, or after it where there are fewer
  sources than targets (a maximum must be aggregated first).

What a target receives from all its relations is one bag of message rows: their sum is one fused gather and reduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.structures import FloatArray, IndexArray

#: Rows that go through an operation at a time, so that what lies between operations is small and its memory is
#: reused at once. Measured at 10 000 nodes, one thread: 1024 rows take 8 % longer in bfloat16, all rows at once
#: 10 % longer in float32 (the pages of fresh memory).
PIECE_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Bags:
    """Rows to be summed: bag *i* holds ``index[offsets[i]:offsets[i + 1]]``, weighted where there are ``weights``.

    ``index``: [K] int64 rows of a table; ``offsets``: [M] int64; ``weights``: [K] float32. ``rows`` is M and
    ``entries`` K.
    """

    index: Tensor
    offsets: Tensor
    weights: Tensor | None = None
    rows: int = field(init=False)
    entries: int = field(init=False)

    def __post_init__(self) -> None:
        # Numbers, because asking a tensor for its length takes as long as a small operation.
        object.__setattr__(self, "rows", self.offsets.shape[0])
        object.__setattr__(self, "entries", self.index.shape[0])


def in_pieces(
    index: IndexArray, counts: IndexArray, weights: FloatArray | None = None, *, rows: int = PIECE_ROWS
) -> tuple[Bags, ...]:
    """Return bags of ``counts`` entries each, at most ``rows`` bags at a time."""
    ends = np.cumsum(counts)
    pieces = []
    for first in range(0, len(counts), rows):
        last = min(first + rows, len(counts))
        begin, end = int(ends[first] - counts[first]), int(ends[last - 1])
        offsets = ends[first:last] - counts[first:last] - begin
        share = None if weights is None else torch.from_numpy(weights[begin:end])
        pieces.append(Bags(torch.from_numpy(index[begin:end]), torch.from_numpy(offsets), share))
    return tuple(pieces)


@dataclass(frozen=True, slots=True, eq=False)
class RowsBlock:
    """Messages that are projections of ``bags`` of source nodes; None: of every source node, in order."""

    edge_type: EdgeType
    rows: int
    bags: tuple[Bags, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class MaxBlock:
    """Messages that project the maximum over neighbours.

    ``levels``: pairs of row lists. The first pair picks source nodes, each later one rows of the level before; a
    level's rows are the maxima of its pairs, the last level's the bags'. (The bag kernel's own maximum is not
    vectorised: 28 ms for 28 000 rows of 256, where its sum takes 0.7 ms.)
    """

    edge_type: EdgeType
    rows: int
    levels: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedBlock:
    """Messages that average rows projected before; ``sources``: [S] nodes to project, None = all in order."""

    edge_type: EdgeType
    rows: int
    sources: Tensor | None
    bags: tuple[Bags, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBlock:
    """Messages of GAT for targets with several neighbours.

    ``edges``: its slice of the stage's attended edges. Before projection (``projected`` False) there is a bag per
    target and head over source nodes; after it, one per target over the projected [S * heads] rows. Entries run
    by target, head, edge in both. ``sources`` as in :class:`ProjectedBlock`.
    """

    edge_type: EdgeType
    rows: int
    edges: slice
    projected: bool
    sources: Tensor | None
    bags: tuple[Bags, ...]


Block = RowsBlock | MaxBlock | ProjectedBlock | AttentionBlock


@dataclass(frozen=True, slots=True)
class Role:
    """A column group of a node type's scores: the type as ``source`` or as target of a relation."""

    edge_type: EdgeType
    is_source: bool


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """The attended edges of a stage: those whose target has several neighbours, E in all, of M targets.

    Attributes:
        roles: column groups of the scores of each node type; scores are [rows, heads], a row per node and role,
            node types one after the other.
        of_source: [E] score row of each edge's source; of_target: [E] of its target.
        attributes: per relation, the positions of its attended edges in its edge list; None = all.
        attribute_bags: a bag per edge: the rows that its attributes weight, one after the other, in the table of
            all relations' attributes.
        bag: [E] target of each edge among the M; bags: the same as bags of edges.
        order: [E * heads] where each bag entry of the blocks finds its weight in the flat attention.
        explained: how many edges, the first ones, have a source whose attention mass is wanted.
        mass_row: [explained] that source's row in the mass vector.
    """

    roles: Mapping[str, tuple[Role, ...]]
    of_source: Tensor
    of_target: Tensor
    attributes: Mapping[EdgeType, Tensor | None]
    attribute_bags: Bags
    bag: Tensor
    bags: Bags
    order: Tensor
    explained: int
    mass_row: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StagePlan:
    """One stage.

    Attributes:
        blocks: per target type, its blocks in the order in which their messages are laid one after the other.
        received: per target type with blocks, a bag of message rows for each of its nodes.
        attention: None where no edge is attended.
    """

    blocks: Mapping[str, tuple[Block, ...]]
    received: Mapping[str, tuple[Bags, ...]]
    attention: AttentionPlan | None = None
