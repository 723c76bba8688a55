"""Caps: which in-edges of a node are kept where a graph is larger than the limits (design §6).

A function of the structure alone, so that every worker keeps the same edges: strongest first where the blueprint
gives a relation's edges a weight, otherwise in an order drawn from the edge's own two ends.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.structures import FloatArray, IndexArray

#: Limits of a graph in which every edge is kept: nodes, and edges of the forward relations (design §6).
MAX_NODES = 100_000
MAX_EDGES = 500_000

_Hash = npt.NDArray[np.uint64]


def strongest(
    edge_type: EdgeType, source: IndexArray, target: IndexArray, strength: FloatArray | None, cap: int
) -> tuple[IndexArray, IndexArray]:
    """Return the edges to keep, and the rank of each among the in-edges of its destination, from 0.

    Kept are the ``cap`` strongest in-edges of every destination, sorted by destination and then by rank.

    Args:
        edge_type: the edges' type; each type draws its own order.
        source: [E] where each edge starts.
        target: [E] its destination.
        strength: [E] magnitudes; NaN is weaker than any number. None: the drawn order alone decides.
        cap: most in-edges of a destination.
    """
    keys = [_drawn(edge_type, source, target)]
    if strength is not None:
        keys.append(np.where(np.isnan(strength), np.inf, -np.abs(strength)))
    order = np.lexsort([*keys, target])
    degrees = np.bincount(target)
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    kept = ranks < cap
    return order[kept], ranks[kept]


def _drawn(edge_type: EdgeType, source: IndexArray, target: IndexArray) -> _Hash:
    """[E] numbers that look random and depend on nothing but the edge (SplitMix64's finaliser)."""
    salt = np.uint64(zlib.crc32("/".join(edge_type).encode()))
    mixed: _Hash = (source.astype(np.uint64) << np.uint64(32)) ^ target.astype(np.uint64) ^ (salt << np.uint64(16))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
