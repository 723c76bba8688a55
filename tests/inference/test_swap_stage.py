"""The stage changes its engine between two batches, and the proven one helps out while another is on trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.micro_batcher import BatchBudget
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.stage import Engine, Evaluated, InferenceStage
from tamiyo_stream.inference.swap import Result, Route
from tests.inference.test_stage import (
    GRAPHS,
    NAN,
    POISON,
    GatedEngine,
    Poisoned,
    Submission,
    running,
)

#: Stands in for a policy that fails where the other one does not.
HARD = replace(GRAPHS[0], run_id="hard")


class NamedEngine(GatedEngine):
    """Answers with its name, at once; ``flaw`` is what becomes of the run ``hard``."""

    def __init__(self, name: str, flaw: str = "") -> None:
        super().__init__()
        self.name, self.flaw = name, flaw
        self.gate.set()

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
        outcomes = super().infer(graphs)
        hard = [graph.run_id == "hard" for graph in graphs]
        if self.flaw == "raises" and any(hard):
            raise Poisoned
        return [
            NonFiniteOutput("hard", "risk_logits")
            if is_hard and self.flaw == "not finite"
            else replace(outcome, policy_digest=self.name)
            if isinstance(outcome, NetworkOutput)
            else outcome
            for is_hard, outcome in zip(hard, outcomes, strict=True)
        ]


class Witness:
    """Keeps what the stage tells."""

    def __init__(self) -> None:
        self.results: list[tuple[Engine, Result]] = []
        self.batches: list[Evaluated] = []

    def evaluated(self, batch: Evaluated) -> None:
        self.batches.append(batch)

    def decided(self, engine: Engine, result: Result) -> None:
        self.results.append((engine, result))


def on_trial(stage: InferenceStage, stable: Engine, trial: Engine) -> Witness:
    witness = Witness()
    stage.observe(witness)
    stage.reroute(Route(stable, trial))
    return witness


async def together(stage: InferenceStage, graphs: Sequence[StepGraph]) -> list[Submission]:
    submissions = [Submission(stage, graph) for graph in graphs]
    async with anyio.create_task_group() as group:
        for submission in submissions:
            group.start_soon(submission)
    return submissions


async def test_another_route_holds_from_the_next_batch_on() -> None:
    old, new = NamedEngine("old"), NamedEngine("new")
    old.gate.clear()
    async with running(old) as stage, anyio.create_task_group() as group:
        first, second = (Submission(stage, graph) for graph in GRAPHS[:2])
        group.start_soon(first)
        while not old.batches:
            await checkpoint()
        stage.reroute(Route(new))
        group.start_soon(second)
        old.gate.set()
    assert first.output is not None
    assert second.output is not None
    assert (first.output.policy_digest, second.output.policy_digest) == ("old", "new")


async def test_graphs_that_wait_together_are_split_by_who_answers_their_runs() -> None:
    old, new = NamedEngine("old"), NamedEngine("new")
    runs = [replace(GRAPHS[0], run_id=f"run-{number}") for number in range(8)]
    async with running(old, queue_delay_ms=200.0) as stage:
        route = Route(old, new, 0.5)
        stage.reroute(route)
        submissions = await together(stage, runs)
    for graph, submission in zip(runs, submissions, strict=True):
        assert submission.output is not None
        assert submission.output.policy_digest == route.engine_of(graph.run_id).name
    assert {len(old.batches), len(new.batches)} == {1}


@pytest.mark.parametrize(("flaw", "result"), [("raises", Result.SPARED), ("not finite", Result.NOT_FINITE)])
async def test_what_the_policy_on_trial_cannot_answer_the_proven_one_does(flaw: str, result: Result) -> None:
    old, new = NamedEngine("old"), NamedEngine("new", flaw)
    async with running(old) as stage:
        witness = on_trial(stage, old, new)
        output = await stage.submit(HARD)
    assert output.policy_digest == "old"
    assert (new, result) in witness.results


async def test_graphs_beside_a_bad_one_keep_the_answer_of_the_policy_on_trial() -> None:
    old, new = NamedEngine("old"), NamedEngine("new", "not finite")
    async with running(old, queue_delay_ms=200.0) as stage:
        on_trial(stage, old, new)
        submissions = await together(stage, [GRAPHS[1], HARD, GRAPHS[2]])
        statistics = stage.statistics()
    outputs = [submission.output for submission in submissions]
    assert [output and output.policy_digest for output in outputs] == ["new", "old", "new"]
    assert (statistics.graphs, statistics.poison, statistics.running) == (3, 0, 0)


@pytest.mark.parametrize("graph", [POISON, NAN], ids=["raises", "not finite"])
async def test_a_graph_that_neither_can_answer_is_not_held_against_the_new_policy(graph: StepGraph) -> None:
    old, new = NamedEngine("old"), NamedEngine("new")
    async with running(old) as stage:
        witness = on_trial(stage, old, new)
        with pytest.raises((Poisoned, NonFiniteOutput)):
            await stage.submit(graph)
        statistics = stage.statistics()
    assert {result for _, result in witness.results} == {Result.ANSWERED}
    assert (statistics.poison, statistics.running) == (1, 0)


async def test_the_observer_is_told_of_answers_batches_and_of_who_was_late() -> None:
    engine = NamedEngine("slow")
    witness = Witness()
    async with running(engine, BatchBudget(graphs=1)) as stage:
        stage.observe(witness)
        await stage.submit(GRAPHS[0])
        engine.gate.clear()
        late = Submission(stage, GRAPHS[1], deadline=anyio.current_time() + 0.05)
        async with anyio.create_task_group() as group:
            group.start_soon(late)
        engine.gate.set()
    assert witness.results == [(engine, Result.ANSWERED), (engine, Result.LATE)]
    assert [graph.global_step for graph in witness.batches[0].graphs] == [GRAPHS[0].global_step]
    assert witness.batches[0].engine is engine


async def test_the_topologies_evaluated_last_are_known() -> None:
    async with running(NamedEngine("any")) as stage:
        for graph in GRAPHS[:3]:
            await stage.submit(graph)
        found = stage.recent_topologies()
    assert found[0] is GRAPHS[2].topology
