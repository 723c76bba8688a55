"""The micro-batcher: which waiting graphs are evaluated together, and when (design §8).

A pure scheduling core: no threads, no timers, no clock of its own. Times are monotonic seconds and are passed in;
``inference.stage`` is the edge that waits, runs batches and wakes who asked.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from tamiyo_stream.inference.forward_times import ForwardTimes

#: An item without deadline takes its turn as if it were due this long after its arrival, so that items with
#: deadlines cannot keep it waiting for ever. It never misses.
PATIENCE_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Upper bounds of one batch; the default holds the largest graph that the graph stage may build."""

    graphs: int = 16
    nodes: int = 200_000
    edges: int = 1_000_000


class GraphTooLarge(ValueError):
    """The graph alone is over the budget of a batch."""

    def __init__(self, nodes: int, edges: int, limit: BatchBudget) -> None:
        super().__init__(
            f"graph has {nodes} nodes and {edges} edges, a batch holds {limit.nodes} and {limit.edges}; "
            "raise the batch budget or lower the graph's limits"
        )
        self.nodes, self.edges, self.limit = nodes, edges, limit


class QueueFull(RuntimeError):
    """As many graphs wait as the queue holds: the network is slower than what arrives."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} graphs are waiting already; give the network more threads or raise the limit")
        self.limit = limit


class DeadlineMissed(TimeoutError):
    """The deadline passed before there was a result; a result that comes later is discarded."""

    def __init__(self, late_ms: float) -> None:
        super().__init__(f"deadline passed {late_ms:.1f} ms ago; raise the step deadline or shorten the forward")
        self.late_ms = late_ms


class _State(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """An admitted item. ``deadline``: monotonic seconds, None = none."""

    item: T
    nodes: int
    edges: int
    arrived: float
    deadline: float | None
    order: tuple[float, int] = field(repr=False)
    state: _State = _State.QUEUED

    def late(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """What :meth:`MicroBatcher.take` hands out: the batch to evaluate, and entries whose deadline has passed."""

    batch: tuple[Entry[T], ...] = ()
    missed: tuple[Entry[T], ...] = ()


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """Counts since the start, and the present state.

    Attributes:
        queued: entries waiting. running: entries being evaluated.
        batches: evaluated. graphs: of these, with a usable output, wanted or not.
        mean_batch: graphs per batch over all batches. last_batch: graphs in the newest.
        refused_oversize: refused for their size. refused_full: refused because the queue was full.
        missed: answered by their deadline, before admission, in the queue or while their forward ran.
        withdrawn: given up by who asked.
        splits: failed batches that were halved. poison: graphs that failed alone.
        forward_p50_ms, forward_p95_ms: of the newest batches, 0 where there was none.
    """

    queued: int = 0
    running: int = 0
    batches: int = 0
    graphs: int = 0
    mean_batch: float = 0.0
    last_batch: int = 0
    refused_oversize: int = 0
    refused_full: int = 0
    missed: int = 0
    withdrawn: int = 0
    splits: int = 0
    poison: int = 0
    forward_p50_ms: float = 0.0
    forward_p95_ms: float = 0.0


@dataclass(slots=True)
class _Counts:
    batches: int = 0
    batched: int = 0
    last_batch: int = 0
    graphs: int = 0
    refused_oversize: int = 0
    refused_full: int = 0
    missed: int = 0
    withdrawn: int = 0
    splits: int = 0
    poison: int = 0


class MicroBatcher(Generic[T]):
    """Collects items into batches: earliest deadline first, within the budget.

    A batch also stops growing where its forward, going by the newest ones, would end after its first deadline.

    An admitted entry ends exactly once: in :meth:`finish` or :meth:`fail` (evaluated), in ``Taken.missed`` or
    :meth:`miss` (deadline), in :meth:`withdraw` or in :meth:`drain`.

    Args:
        budget: upper bounds of a batch.
        queue_delay_s: how long the first of a batch waits for company. A deadline or a full batch ends it sooner.
        max_queued: entries that may wait.
    """

    def __init__(
        self, budget: BatchBudget | None = None, *, queue_delay_s: float = 0.0, max_queued: int = 1024
    ) -> None:
        self.budget = budget or BatchBudget()
        self._queue_delay_s = queue_delay_s
        self._max_queued = max_queued
        self._queue: list[Entry[T]] = []  # by `order`
        self._halves: list[list[Entry[T]]] = []  # of failed batches: they have waited once and go first
        self._running = 0
        self._numbers = itertools.count()
        self._times = ForwardTimes()
        self._counts = _Counts()

    def require_fitting(self, nodes: int, edges: int) -> None:
        """Refuse an item that fits no batch.

        Raises:
            GraphTooLarge: over the node or edge budget.
        """
        if nodes > self.budget.nodes or edges > self.budget.edges:
            self._counts.refused_oversize += 1
            raise GraphTooLarge(nodes, edges, self.budget)

    def admit(self, item: T, *, nodes: int, edges: int, now: float, deadline: float | None = None) -> Entry[T]:
        """Put ``item`` into the queue.

        Raises:
            GraphTooLarge: over the node or edge budget.
            DeadlineMissed: the deadline has passed already.
            QueueFull: ``max_queued`` entries wait.
        """
        self.require_fitting(nodes, edges)
        if deadline is not None and now >= deadline:
            self._counts.missed += 1
            raise DeadlineMissed((now - deadline) * 1000)
        if len(self._queue) >= self._max_queued:
            self._counts.refused_full += 1
            raise QueueFull(self._max_queued)
        due = now + PATIENCE_S if deadline is None else deadline
        entry = Entry(item, nodes, edges, now, deadline, (due, next(self._numbers)))
        bisect.insort(self._queue, entry, key=lambda waiting: waiting.order)
        return entry

    def due(self, now: float) -> float | None:
        """Return from when on :meth:`take` has something to hand out; None = nothing waits.

        That is when a batch cannot grow further, the longest wait for company is over, or the first deadline is as
        near as the forward will take.
        """
        if self._halves:
            return -math.inf
        if not self._queue:
            return None
        batch = self._prefix(now)
        if len(batch) < len(self._queue) or len(batch) >= self.budget.graphs:
            return -math.inf
        waited = min(entry.arrived for entry in self._queue) + self._queue_delay_s
        first = self._queue[0].deadline
        return waited if first is None else min(waited, first - self._expected_s(batch))

    def take(self, now: float) -> Taken[T]:
        """Remove and return what is to be evaluated at ``now``, and what missed its deadline."""
        missed = [entry for entry in itertools.chain(self._queue, *self._halves) if entry.late(now)]
        for entry in missed:
            self.miss(entry)
        due = self.due(now)
        if due is None or now < due:
            return Taken(missed=tuple(missed))
        if self._halves:
            batch = self._halves.pop()
        else:
            batch = self._prefix(now)
            del self._queue[: len(batch)]
        for entry in batch:
            entry.state = _State.RUNNING
        self._running += len(batch)
        return Taken(tuple(batch), tuple(missed))

    def finish(self, batch: Sequence[Entry[T]], *, forward_ms: float, poison: int = 0) -> None:
        """Record that ``batch`` was evaluated, ``poison`` of its graphs without a usable output."""
        self._end(batch)
        self._times.record(_size(batch), forward_ms)
        self._counts.batches += 1
        self._counts.batched += len(batch)
        self._counts.last_batch = len(batch)
        self._counts.graphs += len(batch) - poison
        self._counts.poison += poison

    def fail(self, batch: Sequence[Entry[T]]) -> Entry[T] | None:
        """Record that the evaluation of ``batch`` failed as a whole.

        Returns:
            The entry, where it was alone: it is poison. Else None: the two halves are handed out next, without
            entries that ended meanwhile.
        """
        alive = [entry for entry in batch if entry.state is _State.RUNNING]
        self._end(batch)
        if len(batch) == 1:
            self._counts.poison += 1
            return batch[0]
        self._counts.splits += 1
        for entry in alive:
            entry.state = _State.QUEUED
        middle = (len(alive) + 1) // 2
        self._halves += [half for half in (alive[middle:], alive[:middle]) if half]
        return None

    def withdraw(self, entry: Entry[T]) -> None:
        """End ``entry`` because nobody wants its result any more; no effect where it has ended."""
        self._counts.withdrawn += self._drop(entry)

    def miss(self, entry: Entry[T] | None) -> None:
        """End ``entry`` because its deadline has passed; no effect where it has ended.

        None stands for an item whose deadline passed before it could be admitted.
        """
        self._counts.missed += entry is None or self._drop(entry)

    def drain(self) -> list[Entry[T]]:
        """Remove and return everything that waits."""
        waiting = [*itertools.chain.from_iterable(self._halves), *self._queue]
        for entry in waiting:
            entry.state = _State.DONE
        self._queue, self._halves = [], []
        return waiting

    def statistics(self) -> BatcherStatistics:
        """Return the counts and the present state."""
        counts = self._counts
        return BatcherStatistics(
            queued=len(self._queue) + sum(map(len, self._halves)),
            running=self._running,
            batches=counts.batches,
            graphs=counts.graphs,
            mean_batch=counts.batched / counts.batches if counts.batches else 0.0,
            last_batch=counts.last_batch,
            refused_oversize=counts.refused_oversize,
            refused_full=counts.refused_full,
            missed=counts.missed,
            withdrawn=counts.withdrawn,
            splits=counts.splits,
            poison=counts.poison,
            forward_p50_ms=self._times.percentile(0.5),
            forward_p95_ms=self._times.percentile(0.95),
        )

    def _prefix(self, now: float) -> list[Entry[T]]:
        """Return the head of the queue that makes one batch; nothing overtakes an entry that does not fit."""
        batch: list[Entry[T]] = []
        nodes = edges = 0
        for entry in self._queue[: self.budget.graphs]:
            nodes += entry.nodes
            edges += entry.edges
            if nodes > self.budget.nodes or edges > self.budget.edges or self._too_late([*batch, entry], now):
                break
            batch.append(entry)
        return batch

    def _too_late(self, batch: Sequence[Entry[T]], now: float) -> bool:
        """Whether the last of ``batch`` would make its first miss a deadline that it meets alone."""
        first = batch[0]
        if first.deadline is None or now + self._expected_s(batch[:1]) > first.deadline:
            return False
        return now + self._expected_s(batch) > first.deadline

    def _expected_s(self, batch: Sequence[Entry[T]]) -> float:
        return self._times.expected_ms(_size(batch)) / 1000

    def _end(self, batch: Sequence[Entry[T]]) -> None:
        self._running -= len(batch)
        for entry in batch:
            entry.state = _State.DONE

    def _drop(self, entry: Entry[T]) -> bool:
        """Mark ``entry`` as ended and take it out of the queue; a running batch is left to run."""
        if entry.state is _State.DONE:
            return False
        if entry.state is _State.QUEUED:
            for waiting in (self._queue, *self._halves):
                if entry in waiting:
                    waiting.remove(entry)
            self._halves = [half for half in self._halves if half]
        entry.state = _State.DONE
        return True


def _size(batch: Sequence[Entry[T]]) -> int:
    return sum(entry.nodes + entry.edges for entry in batch)
