"""Decides a recording again: the worker's own step, graph, engine and policy, without a bus (design §14).

Equal inputs at equal moments through equal weights give equal commands, bit for bit. What a bus and a clock decide
in a worker comes from the recording here: which mail is taken together, when it was claimed, how long the answer
took, and failures of the machine rather than of the policy (a network that was late stays late).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from consumers.delivery import Delivery
from consumers.feed import TableFeed
from producers.commit import Commit, Committer
from schemas.simic import PolicyUpdate
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.micro_batcher import BatchBudget, DeadlineMissed, GraphTooLarge, QueueFull
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.stage import StageStopped
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.replay.grouping import Step, Steps
from tamiyo_stream.replay.recording import Verified
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.steps import Mail, StepProcessor
from tamiyo_stream.worker.tables import TableKeeper


@dataclass(frozen=True, slots=True)
class Policy:
    """Who decides: an engine, and the vocabularies that its categories are numbered by."""

    engine: InferenceEngine
    registries: Registries


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step's command as recorded and as decided now; None where it was not decided now."""

    step: Step
    command: AdaptationCommand | None


async def replay(
    steps: Steps, shared: Sequence[Verified], policy: Policy, settings: Settings, run: RunState
) -> list[Replayed]:
    """Return what ``policy`` decides on each of ``steps``, starting from ``run``, which moves on with them.

    ``settings`` are those of the recording.
    """
    tables, clock, inference = Tables(), RecordedClock(), RecordedInference(policy.engine)
    feed, registries = RecordedFeed(shared), policy.registries
    # What a worker would put into the dead letter was put there then.
    commits = cast("Committer", _NoCommits())
    keeper = TableKeeper(settings, tables, registries, cast("TableFeed", feed), commits, _pass_over)
    builder = GraphBuilder(
        registries,
        max_nodes=settings.max_nodes,
        max_edges=settings.max_edges,
        deadline_ms=settings.decision_deadline_ms,
    )
    version = policy.engine.policy_version
    processor = StepProcessor(settings, tables, keeper, builder, inference, version, clock)
    found = []
    for step in steps.steps:
        feed.until_ms, clock.step, inference.failure = step.shared_until_ms, step, step.failure
        await keeper.catch_up()
        for item in step.before:
            await processor.process(run, [_mail(item)])
        outcome = await processor.process(run, [_mail(item) for item in step.mail])
        found.append(Replayed(step, outcome.decision.command if outcome.decision is not None else None))
    return found


class RecordedClock:
    """The moments of the step being replayed (:class:`~tamiyo_stream.worker.step_clock.StepClock`)."""

    step: Step

    def elapsed_us(self, _claimed_at: float) -> int:
        """Return the microseconds that the recorded answer took."""
        return self.step.elapsed_us

    def claimed_ns(self, _claimed_at: float) -> int:
        """Return when the packet was claimed, Unix ns."""
        return self.step.claimed_ns


class RecordedInference:
    """The engine without queue and thread; a failure that was not the policy's own happens again."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self.failure = ""

    async def submit(self, graph: StepGraph, deadline: float | None = None) -> NetworkOutput:  # noqa: ARG002 - the clock is the recording's
        """Return the network's output for ``graph``, or raise what the recorded step met."""
        raised = _RECORDED.get(self.failure)
        if raised is not None:
            raise raised(graph)
        self._engine.prepare(graph.topology)
        (outcome,) = self._engine.infer([graph])
        if isinstance(outcome, NonFiniteOutput):
            raise outcome
        return outcome


class RecordedFeed:
    """The shared streams, each entry from Redis's time of it on."""

    def __init__(self, shared: Sequence[Verified]) -> None:
        self._shared = list(shared)
        self._next = 0
        self.until_ms = 0

    async def poll(self) -> list[Delivery]:
        """Return the entries up to :attr:`until_ms` that were not returned before."""
        start = self._next
        while self._next < len(self._shared) and self._shared[self._next].at_ms <= self.until_ms:
            self._next += 1
        return [_delivery(item) for item in self._shared[start : self._next]]


def _pass_over(_update: PolicyUpdate) -> None:
    """A replay keeps the policy it was given."""


class _NoCommits:
    async def commit(self, _commit: Commit) -> bool:
        return False


def _mail(item: Verified) -> Mail:
    return Mail(_delivery(item), item.entry)


def _delivery(item: Verified) -> Delivery:
    recorded = item.recorded
    return Delivery(recorded.stream, recorded.stream.value, recorded.entry_id, recorded.fields, claimed_at=0.0)


def _too_large(graph: StepGraph) -> Exception:
    return GraphTooLarge(graph.topology.num_nodes, graph.topology.num_edges, BatchBudget())


#: Failures of the machine or its load, and what the stage raises for them. A breaker and an answer that is no
#: number follow from the replay itself.
_RECORDED: dict[str, Callable[[StepGraph], Exception]] = {
    Failure.TIMEOUT_INFERENCE: lambda _: DeadlineMissed(0.0),
    Failure.INFERENCE_FAILED: lambda _: RuntimeError("the network failed when this was recorded"),
    Failure.MODEL_MISSING: lambda _: StageStopped("the network was not running when this was recorded"),
    Failure.GRAPH_TOO_LARGE: _too_large,
    Failure.OVERLOADED: lambda _: QueueFull(0),
}
