"""The inference stage: graphs in, outputs out, the forward on one thread of its own (design §8).

The event loop only collects what waits and wakes who asked; forwards run on the stage's thread, one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import anyio
from anyio import from_thread, to_thread
from anyio.abc import TaskStatus

from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.output import NetworkOutput


class Engine(Protocol):
    """What the stage needs of an engine; called on the stage's thread only."""

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput]:
        """Return the output of every graph, in order; raise if any cannot be evaluated."""


class StageStopped(RuntimeError):
    """The stage ended before it could evaluate the graph, or was not running."""


class GraphTooLarge(ValueError):
    """The graph alone is over the budget of a batch."""


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Upper bounds of one batch; the default holds the largest graph that the graph stage may build."""

    graphs: int = 16
    nodes: int = 200_000
    edges: int = 1_000_000


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """Counts since the start, and the present state.

    ``batches``: taken from the queue; ``graphs``: evaluated; ``failures``: graphs whose submit raised the engine's
    error; ``queued``: waiting; ``busy``: a batch is on the thread.
    """

    batches: int
    graphs: int
    failures: int
    queued: int
    busy: bool


@dataclass(slots=True, eq=False)
class _Ticket:
    graph: StepGraph
    settled: anyio.Event = field(default_factory=anyio.Event)
    outcome: NetworkOutput | Exception = field(init=False)

    def settle(self, outcome: NetworkOutput | Exception) -> None:
        self.outcome = outcome
        self.settled.set()


class InferenceStage:
    """Evaluates submitted graphs; those that arrive while the thread is busy are taken together as one batch.

    Start it with ``await task_group.start(stage.run)``; it runs until that task is cancelled. The forward in
    progress is then waited for (a thread cannot be cancelled) and waiting submits raise :class:`StageStopped`.
    """

    def __init__(self, engine: Engine, *, budget: BatchBudget | None = None) -> None:
        self._engine = engine
        self._budget = budget or BatchBudget()
        self._waiting: deque[_Ticket] = deque()
        self._arrived = anyio.Event()
        self._running = self._busy = False
        self._batches = self._graphs = self._failures = 0

    async def submit(self, graph: StepGraph) -> NetworkOutput:
        """Return the network's output for ``graph``. Cancelling the caller affects no other graph.

        Raises:
            GraphTooLarge: the graph alone is over the batch budget; refused at once.
            StageStopped: the stage is not running or stops first.
            Exception: what the engine raised for this graph alone, as ``NonFiniteOutput``.
        """
        self._admit(graph)
        ticket = _Ticket(graph)
        self._waiting.append(ticket)
        self._arrived.set()
        try:
            await ticket.settled.wait()
        finally:
            if not ticket.settled.is_set() and ticket in self._waiting:
                self._waiting.remove(ticket)
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
                    await self._arrived.wait()
                    await self._evaluate(thread, self._take())
            finally:
                self._running = False
                thread.close()
                _stop(self._waiting)
                self._waiting.clear()

    def statistics(self) -> StageStatistics:
        """Return the counts and the present state."""
        return StageStatistics(self._batches, self._graphs, self._failures, len(self._waiting), self._busy)

    def _admit(self, graph: StepGraph) -> None:
        if not self._running:
            raise StageStopped(
                "the inference stage is not running; start InferenceStage.run in a task group first"
            )
        topology = graph.topology
        if topology.num_nodes > self._budget.nodes or topology.num_edges > self._budget.edges:
            raise GraphTooLarge(
                f"graph of run {graph.run_id!r} has {topology.num_nodes} nodes and {topology.num_edges} edges, "
                f"a batch holds {self._budget.nodes} and {self._budget.edges}; raise its budget or cap the graph"
            )

    def _take(self) -> list[_Ticket]:
        """Remove from the queue, in order, what fits one batch; the first always does (it was admitted)."""
        taken: list[_Ticket] = []
        nodes = edges = 0
        while self._waiting and len(taken) < self._budget.graphs:
            topology = self._waiting[0].graph.topology
            nodes += topology.num_nodes
            edges += topology.num_edges
            if taken and (nodes > self._budget.nodes or edges > self._budget.edges):
                break
            taken.append(self._waiting.popleft())
        if not self._waiting:
            self._arrived = anyio.Event()
        return taken

    async def _evaluate(self, thread: _WorkerThread, tickets: list[_Ticket]) -> None:
        if not tickets:  # whoever asked was cancelled meanwhile
            return
        graphs = [ticket.graph for ticket in tickets]
        outcomes: list[NetworkOutput | Exception] = []
        self._busy = True
        try:
            await thread.call(lambda: outcomes.extend(_outcomes(self._engine, graphs)))
            for ticket, outcome in zip(tickets, outcomes, strict=True):
                ticket.settle(outcome)
        finally:
            self._busy = False
            _stop([ticket for ticket in tickets if not ticket.settled.is_set()])
        failures = sum(isinstance(outcome, Exception) for outcome in outcomes)
        self._batches += 1
        self._graphs += len(tickets) - failures
        self._failures += failures


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


def _outcomes(engine: Engine, graphs: Sequence[StepGraph]) -> list[NetworkOutput | Exception]:
    """Evaluate ``graphs`` together, or one by one if that fails, so that a poison graph fails alone."""
    try:
        return list(engine.infer(graphs))
    except Exception as error:  # noqa: BLE001 - the boundary of the stage: the error is handed to whoever submitted
        if len(graphs) == 1:
            return [error]
    return [outcome for graph in graphs for outcome in _outcomes(engine, [graph])]


def _stop(tickets: Iterable[_Ticket]) -> None:
    for ticket in tickets:
        ticket.settle(StageStopped("the inference stage stopped before the graph was evaluated"))
