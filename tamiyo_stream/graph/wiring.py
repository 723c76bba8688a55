"""Wiring: the links of a relation as destination-sorted edges of both directions (design §6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schemas.urza import Adjacency, EdgeList
from tamiyo_stream.graph.caps import strongest
from tamiyo_stream.graph.relations import Relation
from tamiyo_stream.graph.seed_edges import Links
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS, FloatArray, IndexArray, RelationEdges


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """How the attribute rows of a relation are filled: each once, then taken to the edges of both directions.

    ``source``, ``target``: [U] node positions of every edge that is kept in either direction; ``origin``: [U]
    position of the edge in the list it came from (the blueprint's edge list; for monitors all seeds'
    ``monitored_layers`` one after the other), -1 where none; ``reverse_order``: row of each reverse edge;
    ``forward_order``: row of each forward edge, None where rows and forward edges are the same.
    """

    source: IndexArray
    target: IndexArray
    origin: IndexArray
    reverse_order: IndexArray
    max_fan_out: int
    forward_order: IndexArray | None = None

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class WiredRelation:
    """A relation's wiring and the edges of both directions; ``ranks`` where they were capped."""

    wiring: Wiring
    forward: RelationEdges
    reverse: RelationEdges
    ranks: tuple[IndexArray, IndexArray] | None = None


def wire(relation: Relation, links: Links, counts: Mapping[str, int]) -> WiredRelation:
    """Wire every edge, sorted by destination."""
    links = links.take(np.argsort(links.target, kind="stable"))
    source, target = links.source, links.target
    reverse_order = np.argsort(source, kind="stable")
    fan_out = np.bincount(source, minlength=counts[relation.source])
    wiring = Wiring(source, target, links.origins, reverse_order, int(fan_out.max(initial=0)))
    return WiredRelation(
        wiring,
        _edges(source, target, counts[relation.target]),
        _edges(target[reverse_order], source[reverse_order], counts[relation.source]),
    )


def wire_capped(
    relation: Relation, links: Links, counts: Mapping[str, int], adjacency: Adjacency | None
) -> WiredRelation:
    """Wire the strongest in-edges of every node, in each direction by itself, sorted by destination and rank."""
    strength = _strength(relation, links, adjacency)
    cap = NEIGHBOUR_CAPS[0]
    forward, ranks = strongest(relation.edge_type, links.source, links.target, strength, cap)
    reverse, reverse_ranks = strongest(relation.reverse_type, links.target, links.source, strength, cap)
    kept = np.zeros(len(links), dtype=bool)
    kept[forward] = kept[reverse] = True
    rows, row_of = links.take(np.flatnonzero(kept)), np.cumsum(kept) - 1
    fan_out = np.bincount(links.source, minlength=1)
    wiring = Wiring(
        rows.source,
        rows.target,
        rows.origins,
        row_of[reverse],
        int(fan_out.max(initial=0)),
        row_of[forward],
    )
    return WiredRelation(
        wiring,
        _edges(links.source[forward], links.target[forward], counts[relation.target]),
        _edges(links.target[reverse], links.source[reverse], counts[relation.source]),
        (ranks, reverse_ranks),
    )


def _strength(relation: Relation, links: Links, adjacency: Adjacency | None) -> FloatArray | None:
    """[E] the blueprint's weight of each edge, None where the relation has none."""
    listed: EdgeList | None = getattr(adjacency, relation.name, None)
    if listed is None or listed.weight is None or links.origin is None:
        return None
    return np.asarray(listed.weight)[links.origin]


def _edges(source: IndexArray, target: IndexArray, targets: int) -> RelationEdges:
    degrees = np.bincount(target, minlength=targets)
    pointers = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(degrees, dtype=np.int64)])
    return RelationEdges(source, target, pointers)
