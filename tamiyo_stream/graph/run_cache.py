"""The runs whose structure and buffers are kept between steps, within a number and a size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from schemas.kasmina import SeedState
from schemas.urza import Blueprint
from tamiyo_stream.graph.structures import Coverage, FloatArray
from tamiyo_stream.graph.template import Template


class CachedRun:
    """What is kept of a run between steps, each beside what it was made from."""

    def __init__(self) -> None:
        self.blueprint: Blueprint | None = None
        self.seeds: tuple[SeedState, ...] = ()
        self.shapes: tuple[Any, ...] = ()
        self.structure: tuple[Any, ...] = ()
        self.template: Template | None = None
        self.seeds_read: tuple[Any, ...] | None = None
        self.of_seeds: dict[str, FloatArray] = {}
        self.kernels_read: tuple[Any, ...] | None = None
        self.of_kernels: dict[str, FloatArray] = {}
        self.objects_of: Template | None = None
        self.unknown_kernels = 0
        self.counted: tuple[Any, ...] | None = None
        self.coverage: Coverage | None = None
        self.top_layers: tuple[int, ...] = ()
        self.ranked_in = -1
        self.nbytes = 0


class RunCache:
    """Runs by id; the least recently built leaves first, the newest never.

    Args:
        max_runs: most runs kept.
        max_bytes: most bytes in the arrays of all runs together.
    """

    def __init__(self, *, max_runs: int, max_bytes: int) -> None:
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._runs: OrderedDict[str, CachedRun] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, run_id: str) -> CachedRun:
        """Return what is kept of a run, an empty entry for a new one, as the most recently built."""
        cached = self._runs.get(run_id)
        if cached is None:
            cached = self._runs[run_id] = CachedRun()
        self._runs.move_to_end(run_id)
        return cached

    def charge(self, cached: CachedRun) -> None:
        """Count the newest run's arrays; drop the oldest runs while there are too many or they are too large."""
        nbytes = 0 if cached.template is None else cached.template.nbytes
        self.nbytes += nbytes - cached.nbytes
        cached.nbytes = nbytes
        while len(self._runs) > max(self._max_runs, 1) or (self.nbytes > self._max_bytes and len(self._runs) > 1):
            _, dropped = self._runs.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def forget(self, run_id: str) -> None:
        """Drop a run."""
        dropped = self._runs.pop(run_id, None)
        if dropped is not None:
            self.nbytes -= dropped.nbytes
