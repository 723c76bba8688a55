"""The stage evaluates on its own thread what waits together, and one graph's misfortune is its own."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from blockbuster import blockbuster_ctx

from tamiyo_stream.graph.structures import StepGraph, Topology
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.micro_batcher import BatchBudget, DeadlineMissed, GraphTooLarge, QueueFull
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.stage import Engine, InferenceStage, StageStopped
from tamiyo_stream.model.network import TamiyoGNN
from tests.model.samples import random_step_graph


def output_of(graph: StepGraph) -> NetworkOutput:
    empty = np.zeros(0, np.float32)
    return NetworkOutput(
        policy_logits=empty,
        policy_params=empty,
        risk_logits=empty,
        value_estimate=float(graph.global_step),
        blending_method_logits=empty,
        telemetry_embedding=empty,
        graph_embedding=empty,
        seed_scores=empty,
        seed_schedule=empty,
        blueprint_scores=empty,
        layer_attention=empty,
        seed_attention=empty,
        policy_version="v",
        policy_digest="d",
        latency_ms=0.0,
        batch_size=1,
    )


class Poisoned(ValueError):
    """The batch holds a poison run."""


class GatedEngine:
    """Answers with the graph's step once the gate is open; refuses batches that hold a poison run.

    Prepares a topology once ``workshop`` is open.
    """

    def __init__(self) -> None:
        self.gate, self.workshop = threading.Event(), threading.Event()
        self.workshop.set()
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.prepared: dict[str, int] = {}
        self.combinations = ""

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
        self.batches.append([graph.global_step for graph in graphs])
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        for graph in graphs:
            if graph.run_id == "poison":
                raise Poisoned
        return [
            NonFiniteOutput("nan", "risk_logits") if graph.run_id == "nan" else output_of(graph)
            for graph in graphs
        ]

    def is_prepared(self, topology: Topology) -> bool:
        return topology.structure_hash in self.prepared

    def prepare(self, topology: Topology) -> None:
        assert self.workshop.wait(30)
        if not self.is_prepared(topology):
            self.prepared[topology.structure_hash] = threading.get_ident()

    @property
    def wants_preparation(self) -> bool:
        return self.combinations == "wanted"

    def prepare_combinations(self) -> None:
        self.combinations = "prepared"


GRAPHS = [random_step_graph(seed, layers=3, run_id="healthy") for seed in range(8)]
POISON = random_step_graph(99, layers=3, run_id="poison")
NAN = random_step_graph(98, layers=3, run_id="nan")


@asynccontextmanager
async def running(engine: Engine, budget: BatchBudget | None = None, **options) -> AsyncIterator[InferenceStage]:
    stage = InferenceStage(engine, budget=budget, **options)
    async with anyio.create_task_group() as group:
        await group.start(stage.run)
        yield stage
        group.cancel_scope.cancel()


class Submission:
    """A submit in a task of its own, and how it ended."""

    def __init__(self, stage: InferenceStage, graph: StepGraph, deadline: float | None = None) -> None:
        self._stage, self._graph, self._deadline = stage, graph, deadline
        self.scope = anyio.CancelScope()
        self.output: NetworkOutput | None = None
        self.error: Exception | None = None

    async def __call__(self) -> None:
        with self.scope:
            try:
                self.output = await self._stage.submit(self._graph, self._deadline)
            except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
                self.error = error


async def submit_all(
    group, stage: InferenceStage, graphs: Sequence[StepGraph], deadlines: Sequence[float | None] = ()
) -> list[Submission]:
    """Submit the first graph, wait until it occupies the thread, then the rest one after the other."""
    submissions = [
        Submission(stage, graph, deadline) for graph, deadline in zip_longest(graphs, deadlines, fillvalue=None)
    ]
    group.start_soon(submissions[0])
    while not stage.statistics().running:
        await checkpoint()
    for waiting, submission in enumerate(submissions[1:], start=1):
        group.start_soon(submission)
        while stage.statistics().queued < waiting:
            await checkpoint()
    return submissions


async def test_what_waits_while_the_thread_is_busy_is_taken_together() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        async with anyio.create_task_group() as group:
            submissions = await submit_all(group, stage, GRAPHS)
            engine.gate.set()
        assert [len(batch) for batch in engine.batches] == [1, 7]
        assert [submission.output.value_estimate for submission in submissions] == [g.global_step for g in GRAPHS]


async def test_statistics_tell_what_happens() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        async with anyio.create_task_group() as group:
            await submit_all(group, stage, [*GRAPHS[:3], NAN])
            now = stage.statistics()
            assert (now.batches, now.queued, now.running) == (0, 3, 1)
            engine.gate.set()
        done = stage.statistics()
        assert (done.batches, done.graphs, done.poison, done.queued, done.running) == (2, 3, 1, 0, 0)
        assert done.forward_p50_ms > 0


@pytest.mark.parametrize(
    "budget",
    [
        BatchBudget(graphs=2),
        BatchBudget(nodes=2 * GRAPHS[0].topology.num_nodes),
        BatchBudget(edges=2 * GRAPHS[0].topology.num_edges),
    ],
    ids=["graphs", "nodes", "edges"],
)
async def test_a_batch_keeps_its_budget_and_the_order(budget: BatchBudget) -> None:
    engine = GatedEngine()
    async with running(engine, budget) as stage, anyio.create_task_group() as group:
        await submit_all(group, stage, GRAPHS[:6])
        engine.gate.set()
    assert engine.batches == [[0], [1, 2], [3, 4], [5]]


async def test_a_graph_over_the_whole_budget_is_refused_at_once() -> None:
    async with running(GatedEngine(), BatchBudget(nodes=5)) as stage:
        with pytest.raises(GraphTooLarge, match="a batch holds 5"):
            await stage.submit(GRAPHS[0])
        assert stage.statistics().refused_oversize == 1


async def test_a_full_queue_refuses_at_once() -> None:
    engine = GatedEngine()
    async with running(engine, max_queued=1) as stage, anyio.create_task_group() as group:
        await submit_all(group, stage, GRAPHS[:2])
        with pytest.raises(QueueFull):
            await stage.submit(GRAPHS[2])
        engine.gate.set()


async def test_a_poison_graph_fails_alone() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        async with anyio.create_task_group() as group:
            submissions = await submit_all(group, stage, [GRAPHS[0], POISON, *GRAPHS[1:4]])
            engine.gate.set()
        first, poisoned, *healthy = submissions
        assert isinstance(poisoned.error, Poisoned)
        assert [submission.output.value_estimate for submission in (first, *healthy)] == [0, 1, 2, 3]
        assert engine.batches == [[0], [99, 1, 2, 3], [99, 1], [99], [1], [2, 3]]
        assert (await stage.submit(GRAPHS[4])).value_estimate == 4


async def test_a_graph_without_a_usable_output_fails_alone_and_nothing_is_evaluated_twice() -> None:
    engine = GatedEngine()
    async with running(engine) as stage, anyio.create_task_group() as group:
        _, failed, healthy = await submit_all(group, stage, [GRAPHS[0], NAN, GRAPHS[1]])
        engine.gate.set()
    assert isinstance(failed.error, NonFiniteOutput)
    assert healthy.output.value_estimate == 1
    assert engine.batches == [[0], [98, 1]]


async def test_the_earliest_deadline_is_evaluated_first() -> None:
    engine = GatedEngine()
    now = time.monotonic()
    async with running(engine, BatchBudget(graphs=1)) as stage, anyio.create_task_group() as group:
        await submit_all(group, stage, GRAPHS[:4], [None, now + 300, now + 100, now + 200])
        engine.gate.set()
    assert engine.batches == [[0], [2], [3], [1]]


async def test_a_deadline_that_passes_in_the_queue_is_answered_without_evaluation() -> None:
    engine = GatedEngine()
    async with running(engine) as stage, anyio.create_task_group() as group:
        await submit_all(group, stage, GRAPHS[:1])
        with pytest.raises(DeadlineMissed):
            await stage.submit(GRAPHS[1], time.monotonic() + 0.01)
        assert (stage.statistics().missed, stage.statistics().queued) == (1, 0)
        engine.gate.set()
    assert engine.batches == [[0]]


async def test_a_deadline_that_passes_during_the_forward_is_answered_and_the_late_result_discarded() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        with pytest.raises(DeadlineMissed):
            await stage.submit(GRAPHS[0], time.monotonic() + 0.01)
        assert engine.batches == [[0]]
        engine.gate.set()
        assert (await stage.submit(GRAPHS[1])).value_estimate == 1
        assert stage.statistics().missed == 1


async def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        with pytest.raises(DeadlineMissed):
            await stage.submit(GRAPHS[0], time.monotonic() - 1)
    assert engine.batches == []


async def test_a_result_in_time_is_returned() -> None:
    engine = GatedEngine()
    engine.gate.set()
    async with running(engine) as stage:
        assert (await stage.submit(GRAPHS[3], time.monotonic() + 300)).value_estimate == 3


async def test_graphs_that_arrive_within_the_queue_delay_are_evaluated_together() -> None:
    engine = GatedEngine()
    engine.gate.set()
    budget = BatchBudget(graphs=3)
    async with running(engine, budget, queue_delay_ms=300_000) as stage, anyio.create_task_group() as group:
        for graph in GRAPHS[:2]:
            group.start_soon(stage.submit, graph)
        while stage.statistics().queued < 2:
            await checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert engine.batches == []
        group.start_soon(stage.submit, GRAPHS[2])
    assert [sorted(batch) for batch in engine.batches] == [[0, 1, 2]]


async def test_nobody_waits_for_company_longer_than_the_queue_delay() -> None:
    engine = GatedEngine()
    engine.gate.set()
    async with running(engine, queue_delay_ms=1.0) as stage:
        assert (await stage.submit(GRAPHS[0])).value_estimate == 0


async def test_a_stage_that_stops_while_a_plan_is_built_says_so() -> None:
    engine = GatedEngine()
    engine.workshop.clear()
    async with anyio.create_task_group() as group:
        async with running(engine) as stage:
            submission = Submission(stage, GRAPHS[0])
            group.start_soon(submission)
            await anyio.wait_all_tasks_blocked()
        engine.workshop.set()
    assert isinstance(submission.error, StageStopped)


async def test_a_new_structure_is_prepared_once_on_a_thread_of_its_own_while_others_are_evaluated() -> None:
    engine = GatedEngine()
    engine.gate.set()
    known, new = GRAPHS[:2]
    async with running(engine) as stage, anyio.create_task_group() as group:
        await stage.submit(known)
        engine.workshop.clear()
        submissions = [Submission(stage, new) for _ in range(2)]
        for submission in submissions:
            group.start_soon(submission)
        assert (await stage.submit(known)).value_estimate == 0
        assert new.topology.structure_hash not in engine.prepared
        engine.workshop.set()
    assert [submission.output.value_estimate for submission in submissions] == [1, 1]
    assert engine.prepared[new.topology.structure_hash] not in {*engine.threads, threading.get_ident()}


async def test_a_deadline_does_not_wait_for_a_plan() -> None:
    engine = GatedEngine()
    engine.workshop.clear()
    async with running(engine) as stage:
        with pytest.raises(DeadlineMissed):
            await stage.submit(GRAPHS[0], time.monotonic() + 0.01)
        assert stage.statistics().missed == 1
        engine.workshop.set()
    assert engine.batches == []


async def test_a_structure_that_cannot_be_prepared_fails_alone() -> None:
    class Refusing(GatedEngine):
        def prepare(self, topology: Topology) -> None:
            if topology is GRAPHS[0].topology:
                raise Poisoned
            super().prepare(topology)

    engine = Refusing()
    engine.gate.set()
    async with running(engine) as stage:
        with pytest.raises(Poisoned):
            await stage.submit(GRAPHS[0])
        assert (await stage.submit(GRAPHS[1])).value_estimate == 1


async def test_what_the_engine_noted_is_prepared_in_the_background() -> None:
    engine = GatedEngine()
    engine.gate.set()
    async with running(engine) as stage:
        await stage.submit(GRAPHS[0])
        engine.combinations = "wanted"
        await stage.submit(GRAPHS[1])
        while engine.wants_preparation:
            await anyio.to_thread.run_sync(threading.get_ident)
    assert engine.combinations == "prepared"


async def test_a_preparation_that_fails_costs_no_step_and_is_logged(caplog) -> None:
    class Failing(GatedEngine):
        def prepare_combinations(self) -> None:
            super().prepare_combinations()
            raise MemoryError

    engine = Failing()
    engine.gate.set()
    engine.combinations = "wanted"
    async with running(engine) as stage:
        await stage.submit(GRAPHS[0])
        while not caplog.records:
            await anyio.to_thread.run_sync(threading.get_ident)
        assert (await stage.submit(GRAPHS[1])).value_estimate == 1
    assert "plan_not_prepared" in caplog.text


async def test_a_cancelled_submit_affects_no_other_and_is_not_evaluated() -> None:
    engine = GatedEngine()
    async with running(engine) as stage, anyio.create_task_group() as group:
        in_progress, waiting, last = await submit_all(group, stage, GRAPHS[:3])
        in_progress.scope.cancel()
        waiting.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        engine.gate.set()
    assert engine.batches == [[0], [2]]
    assert in_progress.output is waiting.output is None
    assert last.output.value_estimate == 2


async def test_every_forward_runs_on_one_thread_that_is_not_the_loops() -> None:
    engine = GatedEngine()
    engine.gate.set()
    async with running(engine) as stage:
        for graph in GRAPHS:
            await stage.submit(graph)
            await anyio.to_thread.run_sync(threading.get_ident)
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


async def test_stopping_waits_for_the_forward_and_tells_who_waits() -> None:
    engine = GatedEngine()
    stage = InferenceStage(engine)
    async with anyio.create_task_group() as outer, anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def serve(*, task_status) -> None:
            with scope:
                await stage.run(task_status=task_status)

        await outer.start(serve)
        first, waiting = await submit_all(group, stage, GRAPHS[:2])
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert stage.statistics().running == 1
        engine.gate.set()
    assert first.output.value_estimate == 0
    assert isinstance(waiting.error, StageStopped)
    with pytest.raises(StageStopped, match="not running"):
        await stage.submit(GRAPHS[0])


async def test_an_engine_that_breaks_its_contract_stops_the_stage_and_leaves_nobody_waiting() -> None:
    class Forgetful(GatedEngine):
        def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
            return super().infer(graphs)[1:]

    engine = Forgetful()
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with running(engine) as stage, anyio.create_task_group() as group:
            submissions = await submit_all(group, stage, GRAPHS[:3])
            engine.gate.set()
    assert all(isinstance(submission.error, StageStopped) for submission in submissions)


async def test_the_event_loop_is_never_blocked_by_a_real_forward(network: TamiyoGNN) -> None:
    engine = InferenceEngine(network, policy_version="v", policy_digest="d")
    outputs: list[NetworkOutput] = []
    with blockbuster_ctx():
        async with running(engine) as stage, anyio.create_task_group() as group:

            async def ask(graph: StepGraph) -> None:
                outputs.append(await stage.submit(graph))

            for graph in GRAPHS:
                group.start_soon(ask, graph)
    assert len(outputs) == len(GRAPHS)
