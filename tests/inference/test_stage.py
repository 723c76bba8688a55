"""The stage evaluates on its own thread what waits together, and one graph's misfortune is its own."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from blockbuster import blockbuster_ctx

from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.engine import InferenceEngine, NonFiniteOutput
from tamiyo_stream.inference.output import NetworkOutput
from tamiyo_stream.inference.stage import BatchBudget, Engine, GraphTooLarge, InferenceStage, StageStopped
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


class GatedEngine:
    """Answers with the graph's step once the gate is open; refuses batches that hold a poison run."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput]:
        self.batches.append([graph.global_step for graph in graphs])
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        for graph in graphs:
            if graph.run_id == "poison":
                raise NonFiniteOutput(graph.run_id, "risk_logits")
        return [output_of(graph) for graph in graphs]


GRAPHS = [random_step_graph(seed, layers=3, run_id="healthy") for seed in range(8)]
POISON = random_step_graph(99, layers=3, run_id="poison")


@asynccontextmanager
async def running(engine: Engine, budget: BatchBudget | None = None) -> AsyncIterator[InferenceStage]:
    stage = InferenceStage(engine, budget=budget)
    async with anyio.create_task_group() as group:
        await group.start(stage.run)
        yield stage
        group.cancel_scope.cancel()


class Submission:
    """A submit in a task of its own, and how it ended."""

    def __init__(self, stage: InferenceStage, graph: StepGraph) -> None:
        self._stage, self._graph = stage, graph
        self.scope = anyio.CancelScope()
        self.output: NetworkOutput | None = None
        self.error: Exception | None = None

    async def __call__(self) -> None:
        with self.scope:
            try:
                self.output = await self._stage.submit(self._graph)
            except (ArithmeticError, RuntimeError) as error:
                self.error = error


async def submit_all(group, stage: InferenceStage, graphs: Sequence[StepGraph]) -> list[Submission]:
    """Submit the first graph, wait until it occupies the thread, then the rest."""
    submissions = [Submission(stage, graph) for graph in graphs]
    group.start_soon(submissions[0])
    while not stage.statistics().busy:
        await checkpoint()
    for submission in submissions[1:]:
        group.start_soon(submission)
    while stage.statistics().queued < len(graphs) - 1:
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
            await submit_all(group, stage, [*GRAPHS[:3], POISON])
            now = stage.statistics()
            assert (now.batches, now.queued, now.busy) == (0, 3, True)
            engine.gate.set()
        done = stage.statistics()
        assert (done.batches, done.graphs, done.failures, done.queued, done.busy) == (2, 3, 1, 0, False)


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
        with pytest.raises(GraphTooLarge, match="run 'healthy'"):
            await stage.submit(GRAPHS[0])


async def test_a_poison_graph_fails_alone() -> None:
    engine = GatedEngine()
    async with running(engine) as stage:
        async with anyio.create_task_group() as group:
            first, poisoned, last = await submit_all(group, stage, [GRAPHS[0], POISON, GRAPHS[1]])
            engine.gate.set()
        assert isinstance(poisoned.error, NonFiniteOutput)
        assert (first.output.value_estimate, last.output.value_estimate) == (0, 1)
        assert engine.batches == [[0], [99, 1], [99], [1]]
        assert (await stage.submit(GRAPHS[2])).value_estimate == 2


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
        assert stage.statistics().busy
        engine.gate.set()
    assert first.output.value_estimate == 0
    assert isinstance(waiting.error, StageStopped)
    with pytest.raises(StageStopped, match="not running"):
        await stage.submit(GRAPHS[0])


async def test_an_engine_that_breaks_its_contract_stops_the_stage_and_leaves_nobody_waiting() -> None:
    class Forgetful(GatedEngine):
        def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput]:
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
