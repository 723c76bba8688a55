"""Forwards recorded as CUDA graphs, one per bucket of sizes: one launch instead of hundreds (design §8).

The structure of a run hardly changes, so one bucket serves a whole run. Recording takes many times a forward: it
is done when a bucket comes for the second time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tamiyo_stream.inference.collate import Batch
from tamiyo_stream.inference.padding import Bucket, PaddedBatch

#: Recorded graphs that are kept; they share one memory pool, each adds its inputs and outputs.
MAX_GRAPHS = 8
#: Buckets remembered as seen once.
_MAX_SEEN = 256
#: Forwards before recording, in which libraries choose their kernels and allocate their workspaces.
_WARM_UPS = 3

Forward = Callable[[Batch], Mapping[str, Tensor]]


class GraphCache:
    """Runs batches through their bucket's recording.

    Args:
        record: returns the forward of a bucket, recorded.
        eager: the forward without recording, for a bucket's first batch; takes any batch.
    """

    def __init__(self, record: Callable[[Bucket], Forward], eager: Forward) -> None:
        self._record, self._eager = record, eager
        self._recorded: OrderedDict[Bucket, Forward] = OrderedDict()
        self._seen: OrderedDict[Bucket, None] = OrderedDict()
        self.replays = 0

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the outputs of ``batch``, rows of padding after the real ones; valid until the next call."""
        bucket = Bucket.of(batch)
        if bucket not in self._recorded:
            if bucket not in self._seen:
                self._seen[bucket] = None
                while len(self._seen) > _MAX_SEEN:
                    self._seen.popitem(last=False)
                return self._eager(batch)
            while len(self._recorded) >= MAX_GRAPHS:
                self._recorded.popitem(last=False)
            self._recorded[bucket] = self._record(bucket)
        self._recorded.move_to_end(bucket)
        self.replays += 1
        return self._recorded[bucket](batch)


class RecordedForward:
    """``forward`` over one bucket's sizes, recorded on ``device`` and replayed for every batch.

    Raises:
        RuntimeError: the forward cannot be recorded, because it waits for the device or changes shapes.
    """

    def __init__(self, forward: Forward, bucket: Bucket, device: torch.device, pool: Any) -> None:
        self._host = PaddedBatch(bucket, pinned=True)
        # Zeros are a valid batch: what is recorded depends on the sizes, never on the values.
        self._inputs = self._host.batch.to(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no stub for it
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                forward(self._inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = forward(self._inputs)

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the outputs of ``batch``; the tensors are overwritten by the next call."""
        self._host.load(batch)
        for target, source in _pairs(self._inputs, self._host.batch):
            target.copy_(source, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _pairs(target: Batch, source: Batch) -> list[tuple[Tensor, Tensor]]:
    pairs = [(target.batch, source.batch)]
    for name in ("x_dict", "edge_index_dict", "edge_attr_dict"):
        into, out_of = getattr(target, name), getattr(source, name)
        pairs += [(into[key], out_of[key]) for key in out_of]
    return pairs
