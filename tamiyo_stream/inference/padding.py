"""Batches padded to coarse sizes, so that few shapes occur: for CUDA graphs and compiled code (design §8).

Every padded node type has at least one dummy node, after the real ones. All dummy edges run between dummy nodes,
so no real node hears of them, and stay sorted by destination. Dummy layers belong to a graph of their own, the
last. Rows of real nodes and graphs come first and are what they are without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EdgeType
from tamiyo_stream.inference.collate import Batch


def grid_size(count: int) -> int:
    """Return the smallest size of the grid 0, 1, 2, 3, 4, 5, 7, 9, 12, … (each 1.25 times) that holds it."""
    size = min(count, 1)
    while size < count:
        size = -(-size * 5 // 4)
    return size


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes that a batch is padded to.

    ``graphs``: the dummy graph included; ``nodes``: by node type, dummies included; ``edges``: by edge type, those
    with edges alone.
    """

    graphs: int
    nodes: tuple[tuple[str, int], ...]
    edges: tuple[tuple[EdgeType, int], ...]

    @classmethod
    def of(cls, batch: Batch) -> Bucket:
        """Return the bucket of ``batch``."""
        return cls(
            graphs=grid_size(batch.batch_size + 1),
            nodes=tuple((name, grid_size(len(rows) + 1)) for name, rows in batch.x_dict.items()),
            edges=tuple((key, grid_size(index.shape[1])) for key, index in batch.edge_index_dict.items()),
        )


class PaddedBatch:
    """Buffers of one bucket that batches are written into, one after the other.

    Args:
        bucket: the sizes.
        pinned: page-locked memory, from which a device copies without blocking.
    """

    def __init__(self, bucket: Bucket, *, pinned: bool = False) -> None:
        nodes = dict(bucket.nodes)
        self.batch = Batch(
            x_dict={name: torch.zeros(n, NODES[name].raw_width, pin_memory=pinned) for name, n in bucket.nodes},
            edge_index_dict={
                key: torch.zeros(2, n, dtype=torch.long, pin_memory=pinned) for key, n in bucket.edges
            },
            edge_attr_dict={
                key: torch.zeros(n, BY_EDGE_TYPE[key].width, pin_memory=pinned) for key, n in bucket.edges
            },
            batch=torch.zeros(nodes["layer"], dtype=torch.long, pin_memory=pinned),
            batch_size=bucket.graphs,
            offsets={},
        )

    def load(self, batch: Batch) -> Batch:
        """Write ``batch``, which must be of this bucket, and return the padded batch: the same one every time."""
        padded = self.batch
        _fill(padded.x_dict, batch.x_dict)
        _fill(padded.edge_attr_dict, batch.edge_attr_dict)
        for key, index in batch.edge_index_dict.items():
            rows, count = padded.edge_index_dict[key], index.shape[1]
            rows[:, :count] = index
            rows[0, count:] = len(padded.x_dict[key[0]]) - 1
            rows[1, count:] = len(padded.x_dict[key[2]]) - 1
        padded.batch[: len(batch.batch)] = batch.batch
        padded.batch[len(batch.batch) :] = padded.batch_size - 1
        return padded


def pad(batch: Batch) -> Batch:
    """Return a copy of ``batch`` padded to its bucket."""
    return PaddedBatch(Bucket.of(batch)).load(batch)


def _fill(
    padded: Mapping[str, Tensor] | Mapping[EdgeType, Tensor],
    given: Mapping[str, Tensor] | Mapping[EdgeType, Tensor],
) -> None:
    for rows, real in zip(padded.values(), given.values(), strict=True):
        rows[: len(real)] = real
        rows[len(real) :] = 0.0
