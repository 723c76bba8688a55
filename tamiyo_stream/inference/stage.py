"""The inference stage: graphs in, outputs out, the forward on one thread of its own (design §8).

The thin edge around :mod:`~tamiyo_stream.inference.micro_batcher`: it waits, runs batches and wakes who asked. The
event loop is never blocked: forwards run on the stage's thread, one at a time; the plan of a structure not seen
before is built on another one before its graph is queued, so that it delays nobody else's. A :class:`Route` says
which engine answers which run; it is read once per batch, so another one takes hold between two batches.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from queue import SimpleQueue
from typing import Protocol, cast

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
from tamiyo_stream.inference.swap import RecentTopologies, Result, Route

#: An idle stage makes a round so often, to show that it is alive.
ROUND_S = 0.25

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


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """A batch that was answered: who by, and the forward's milliseconds."""

    engine: Engine
    graphs: Sequence[StepGraph]
    outcomes: Sequence[NetworkOutput | NonFiniteOutput]
    ms: float


class StageObserver(Protocol):
    """Is told what becomes of the graphs; called on the event loop, must neither block nor raise."""

    def evaluated(self, batch: Evaluated) -> None:
        """Take note of a batch; its graphs have their answers already."""

    def decided(self, engine: Engine, result: Result) -> None:
        """Take note of what became of a graph of ``engine``."""


class StageStopped(RuntimeError):
    """The stage ended before it could evaluate the graph, or was not running."""


@dataclass(slots=True, eq=False)
class _Ticket:
    graph: StepGraph
    engine: Engine | None = None  # whose answer this will be
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
        self._route: Route[Engine] = Route(engine)
        self._recent = RecentTopologies()
        self._observer: StageObserver | None = None
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
        try:
            outcome = await self._outcome_of(ticket, deadline)
        except DeadlineMissed:
            self._tell(ticket.engine or self._route.engine_of(graph.run_id), Result.LATE)
            raise
        self._tell(ticket.engine, Result.ANSWERED)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def route(self) -> Route[Engine]:
        """Which engine answers which run."""
        return self._route

    def reroute(self, route: Route[Engine]) -> None:
        """Let ``route`` hold from the next batch on; the one in progress ends with the engine it began with."""
        self._route = route

    def observe(self, observer: StageObserver | None) -> None:
        """Tell ``observer`` from now on, and nobody else."""
        self._observer = observer

    def recent_topologies(self) -> tuple[Topology, ...]:
        """Return the topologies evaluated last, the newest first: what a new engine should be prepared for."""
        return self._recent.newest()

    async def _outcome_of(self, ticket: _Ticket, deadline: float | None) -> NetworkOutput | Exception:
        topology = ticket.graph.topology
        self._batcher.require_fitting(topology.num_nodes, topology.num_edges)
        entry: Entry[_Ticket] | None = None
        with anyio.move_on_after(_until(deadline)) as scope:
            try:
                await self._prepare(ticket.graph)
                entry = self._admit(ticket, deadline)
                await ticket.settled.wait()
            finally:
                if entry is not None and not scope.cancel_called:
                    self._batcher.withdraw(entry)
        if scope.cancelled_caught:
            self._batcher.miss(entry)
            raise DeadlineMissed(-_until(deadline) * 1000)
        if isinstance(ticket.outcome, DeadlineMissed):
            raise ticket.outcome
        return ticket.outcome

    async def run(
        self,
        beat: Callable[[], object] = lambda: None,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve submits until cancelled; ``beat`` is called each round, when idle each :data:`ROUND_S`."""
        thread = _WorkerThread()
        async with anyio.create_task_group() as group:
            group.start_soon(thread.serve)
            self._running = True
            task_status.started()
            try:
                while True:
                    beat()
                    await checkpoint_if_cancelled()  # a forward ends without noticing
                    await self._serve_next(thread)
                    for engine in self._route.engines:
                        if engine.wants_preparation and not self._preparing.borrowed_tokens:
                            group.start_soon(self._prepare_combinations, engine)
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

    async def _prepare(self, graph: StepGraph) -> None:
        engine, topology = self._route.engine_of(graph.run_id), graph.topology
        self._recent.note(topology)
        if engine.is_prepared(topology):
            return
        # Abandoned at the deadline: the thread still finishes, and the structure's next step finds its plan.
        await to_thread.run_sync(engine.prepare, topology, abandon_on_cancel=True, limiter=self._preparing)
        self._require_running()

    async def _prepare_combinations(self, engine: Engine) -> None:
        try:
            await to_thread.run_sync(engine.prepare_combinations, abandon_on_cancel=True, limiter=self._preparing)
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
        with anyio.move_on_after(min(_until(due), ROUND_S)):
            await self._changed.wait()

    async def _evaluate(self, thread: _WorkerThread, batch: Sequence[Entry[_Ticket]]) -> None:
        route = self._route  # read once: no batch is evaluated by two
        answered = False
        try:
            for engine, entries in route.split(batch, [entry.item.graph.run_id for entry in batch]):
                if engine is route.trial:
                    await self._try(thread, route, entries)
                else:
                    self._settle(engine, entries, await self._forward(thread, engine, entries))
            answered = True
        finally:
            if not answered:
                _stop(batch)

    async def _try(self, thread: _WorkerThread, route: Route[Engine], entries: Sequence[Entry[_Ticket]]) -> None:
        """Evaluate with the engine on trial; what it cannot answer, the proven one does within the same batch."""
        engine = cast("Engine", route.trial)
        forward = await self._forward(thread, engine, entries)
        failed = [
            (entry, Result.SPARED if forward.error else Result.NOT_FINITE)
            for entry, outcome in zip_longest(entries, forward.outcomes)
            if not isinstance(outcome, NetworkOutput)
        ]
        if not failed:
            self._settle(engine, entries, forward)
            return
        left = [entry for entry, _ in failed]
        good = [position for position, entry in enumerate(entries) if entry not in left]
        if good:
            outcomes = [forward.outcomes[position] for position in good]
            self._settle(engine, [entries[position] for position in good], _Forward(outcomes, None, forward.ms))
        again = await self._forward(thread, route.stable, left)
        self._settle(route.stable, left, again)
        for (_, result), outcome in zip_longest(failed, again.outcomes):
            if isinstance(outcome, NetworkOutput):  # else the graph is to blame, not the policy
                self._tell(engine, result)

    async def _forward(self, thread: _WorkerThread, engine: Engine, entries: Sequence[Entry[_Ticket]]) -> _Forward:
        forward = _Forward()
        graphs = [entry.item.graph for entry in entries]
        for entry in entries:
            entry.item.engine = engine
        await thread.call(lambda: _run(engine, graphs, forward))
        if forward.error is None and len(forward.outcomes) != len(entries):
            raise ValueError(f"the engine gave {len(forward.outcomes)} outcomes for {len(entries)} graphs; fix it")
        return forward

    def _settle(self, engine: Engine, entries: Sequence[Entry[_Ticket]], forward: _Forward) -> None:
        if forward.error is not None:
            alone = self._batcher.fail(entries)
            if alone is not None:
                alone.item.settle(forward.error)
            return
        for entry, outcome in zip(entries, forward.outcomes, strict=True):
            entry.item.settle(outcome)
        poison = sum(isinstance(outcome, Exception) for outcome in forward.outcomes)
        self._batcher.finish(entries, forward_ms=forward.ms, poison=poison)
        if self._observer is not None:
            graphs = [entry.item.graph for entry in entries]
            self._observer.evaluated(Evaluated(engine, graphs, forward.outcomes, forward.ms))

    def _tell(self, engine: Engine | None, result: Result) -> None:
        if self._observer is not None and engine is not None:
            self._observer.decided(engine, result)


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
