"""The inference stage: graphs in, outputs out, the forward on one thread of its own (design §8).

The thin edge around :mod:`~tamiyo_stream.inference.micro_batcher`: it waits, runs batches and wakes who asked. The
event loop is never blocked: forwards run on the stage's thread, one at a time; the plan of a structure not seen
before is built on another one before its graph is queued, so that it delays nobody else's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import anyio
from anyio import from_thread, to_thread
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint_if_cancelled

from tamiyo_stream.graph.structures import StepGraph, Topology
from tamiyo_stream.inference.micro_batcher import (
    BatchBudget,
    BatcherStatistics,
    DeadlineMissed,
    Entry,
    MicroBatcher,
)
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput

log = logging.getLogger("tamiyo.inference")


class Engine(Protocol):
    """What the stage needs of an engine."""

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
        """Return the outcome of every graph, in order; raise if the batch cannot be evaluated.

        Called on the stage's thread only.
        """

    def is_prepared(self, topology: Topology) -> bool:
        """Whether :meth:`prepare` would have nothing to do; called on the event loop, must not block."""

    def prepare(self, topology: Topology) -> None:
        """Build what a forward over ``topology`` needs; called on any thread, also while another infers."""

    @property
    def wants_preparation(self) -> bool:
        """Whether batches were seen that :meth:`prepare_combinations` would speed up; must not block."""

    def prepare_combinations(self) -> None:
        """Build what such batches need; called as :meth:`prepare` is."""


class StageStopped(RuntimeError):
    """The stage ended before it could evaluate the graph, or was not running."""


@dataclass(slots=True, eq=False)
class _Ticket:
    graph: StepGraph
    settled: anyio.Event = field(default_factory=anyio.Event)
    outcome: NetworkOutput | Exception = field(init=False)

    def settle(self, outcome: NetworkOutput | Exception) -> None:
        self.outcome = outcome
        self.settled.set()


@dataclass(slots=True)
class _Forward:
    """One batch on the thread: its outcomes, or the error of the whole, and the time it took."""

    outcomes: Sequence[NetworkOutput | NonFiniteOutput] = ()
    error: Exception | None = None
    ms: float = 0.0


class InferenceStage:
    """Evaluates submitted graphs, those that wait together as one batch, earliest deadline first.

    Start it with ``await task_group.start(stage.run)``; it runs until that task is cancelled. The forward in
    progress is then waited for (a thread cannot be cancelled) and waiting submits raise :class:`StageStopped`.

    Args:
        engine: evaluates batches.
        budget: upper bounds of a batch.
        queue_delay_ms: how long the first graph of a batch waits for company while the thread is idle.
        max_queued: graphs that may wait.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        budget: BatchBudget | None = None,
        queue_delay_ms: float = 0.0,
        max_queued: int = 1024,
    ) -> None:
        self._engine = engine
        self._batcher: MicroBatcher[_Ticket] = MicroBatcher(
            budget, queue_delay_s=queue_delay_ms / 1000, max_queued=max_queued
        )
        self._changed = anyio.Event()
        self._preparing = anyio.CapacityLimiter(1)  # a second builder would find the structure built by the first
        self._running = False

    async def submit(self, graph: StepGraph, deadline: float | None = None) -> NetworkOutput:
        """Return the network's output for ``graph``. Cancelling the caller affects no other graph.

        Args:
            graph: the step to evaluate.
            deadline: ``time.monotonic()`` seconds at which the caller gives up; a later result is discarded.

        Raises:
            GraphTooLarge: the graph alone is over the batch budget; refused at once.
            QueueFull: too many graphs wait; refused at once.
            DeadlineMissed: there was no result in time.
            StageStopped: the stage is not running or stops first.
            NonFiniteOutput: the network's answer to this graph is not a number.
            Exception: what the engine raised for this graph alone.
        """
        self._require_running()
        ticket = _Ticket(graph)
        topology = graph.topology
        self._batcher.require_fitting(topology.num_nodes, topology.num_edges)
        entry: Entry[_Ticket] | None = None
        with anyio.move_on_after(_until(deadline)) as scope:
            try:
                await self._prepare(topology)
                entry = self._admit(ticket, deadline)
                await ticket.settled.wait()
            finally:
                if entry is not None and not scope.cancel_called:
                    self._batcher.withdraw(entry)
        if scope.cancelled_caught:
            self._batcher.miss(entry)
            raise DeadlineMissed(-_until(deadline) * 1000)
        if isinstance(ticket.outcome, Exception):
            raise ticket.outcome
        return ticket.outcome

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve submits until cancelled."""
        thread = _WorkerThread()
        async with anyio.create_task_group() as group:
            group.start_soon(thread.serve)
            self._running = True
            task_status.started()
            try:
                while True:
                    await checkpoint_if_cancelled()  # a forward ends without noticing
                    await self._serve_next(thread)
                    if self._engine.wants_preparation and not self._preparing.borrowed_tokens:
                        group.start_soon(self._prepare_combinations)
            finally:
                self._running = False
                thread.close()
                _stop(self._batcher.drain())

    def statistics(self) -> BatcherStatistics:
        """Return the counts and the present state."""
        return self._batcher.statistics()

    def _require_running(self) -> None:
        if not self._running:
            raise StageStopped(
                "the inference stage is not running; start InferenceStage.run in a task group first"
            )

    async def _prepare(self, topology: Topology) -> None:
        if self._engine.is_prepared(topology):
            return
        # Abandoned at the deadline: the thread still finishes, and the structure's next step finds its plan.
        await to_thread.run_sync(self._engine.prepare, topology, abandon_on_cancel=True, limiter=self._preparing)
        self._require_running()

    async def _prepare_combinations(self) -> None:
        try:
            await to_thread.run_sync(
                self._engine.prepare_combinations, abandon_on_cancel=True, limiter=self._preparing
            )
        except Exception as error:  # noqa: BLE001 - the task's boundary: steps are answered without it, only slower
            log.warning("plan_not_prepared: %r; such batches are evaluated one by one", error)

    def _admit(self, ticket: _Ticket, deadline: float | None) -> Entry[_Ticket]:
        topology = ticket.graph.topology
        entry = self._batcher.admit(
            ticket,
            nodes=topology.num_nodes,
            edges=topology.num_edges,
            now=time.monotonic(),
            deadline=deadline,
        )
        self._changed.set()
        return entry

    async def _serve_next(self, thread: _WorkerThread) -> None:
        """Evaluate what is due; where nothing is, wait until it is or something arrives."""
        now = time.monotonic()
        taken = self._batcher.take(now)
        for entry in taken.missed:
            entry.item.settle(DeadlineMissed(-_until(entry.deadline) * 1000))
        if taken.batch:
            await self._evaluate(thread, taken.batch)
            return
        due = self._batcher.due(now)
        self._changed = anyio.Event()
        with anyio.move_on_after(_until(due)):
            await self._changed.wait()

    async def _evaluate(self, thread: _WorkerThread, batch: Sequence[Entry[_Ticket]]) -> None:
        graphs = [entry.item.graph for entry in batch]
        forward = _Forward()
        answered = False
        try:
            await thread.call(lambda: _run(self._engine, graphs, forward))
            if forward.error is None:
                self._answer(batch, forward)
            else:
                alone = self._batcher.fail(batch)
                if alone is not None:
                    alone.item.settle(forward.error)
            answered = True
        finally:
            if not answered:
                _stop(batch)

    def _answer(self, batch: Sequence[Entry[_Ticket]], forward: _Forward) -> None:
        if len(forward.outcomes) != len(batch):
            raise ValueError(f"the engine gave {len(forward.outcomes)} outcomes for {len(batch)} graphs; fix it")
        for entry, outcome in zip(batch, forward.outcomes, strict=True):
            entry.item.settle(outcome)
        poison = sum(isinstance(outcome, Exception) for outcome in forward.outcomes)
        self._batcher.finish(batch, forward_ms=forward.ms, poison=poison)


class _WorkerThread:
    """One thread that runs calls one after the other for as long as :meth:`serve` runs."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], None], anyio.Event] | None] = SimpleQueue()

    async def serve(self) -> None:
        # Its own limiter: the thread is held for the stage's whole life and must not use up a shared token.
        await to_thread.run_sync(self._loop, limiter=anyio.CapacityLimiter(1))

    async def call(self, work: Callable[[], None]) -> None:
        """Run ``work`` and wait for its end, also when cancelled; what it raises comes out of :meth:`serve`."""
        done = anyio.Event()
        self._calls.put((work, done))
        with anyio.CancelScope(shield=True):
            await done.wait()

    def close(self) -> None:
        self._calls.put(None)

    def _loop(self) -> None:
        while (call := self._calls.get()) is not None:
            work, done = call
            try:
                work()
            finally:
                from_thread.run_sync(done.set)


def _run(engine: Engine, graphs: Sequence[StepGraph], forward: _Forward) -> None:
    started = time.perf_counter()
    try:
        forward.outcomes = engine.infer(graphs)
    except Exception as error:  # noqa: BLE001 - the boundary of the stage: the error is handed to whoever submitted
        forward.error = error
    forward.ms = (time.perf_counter() - started) * 1000


def _until(moment: float | None) -> float:
    """Return the seconds until a monotonic time, negative where it has passed; None = never."""
    return math.inf if moment is None else moment - time.monotonic()


def _stop(entries: Iterable[Entry[_Ticket]]) -> None:
    for entry in entries:
        if not entry.item.settled.is_set():
            entry.item.settle(StageStopped("the inference stage stopped before the graph was evaluated"))
