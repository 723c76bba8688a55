"""One run's mail becomes one commit: merge, build, infer, decide, settle (the middle of design §2).

Everything a run was sent since its last commit is taken together. Of several state packets the newest is decided
and the older ones are superseded by it: applied, acknowledged and named in the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
import structlog

from consumers.delivery import Delivery
from schemas.entry import Entry
from schemas.kasmina import SeedExport
from schemas.tamiyo import FieldReport
from schemas.telemetry import TelemetryPacket
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.manifest import manifest_digest
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.hub.step_telemetry import Refusal, StepMeasurements, step_packet
from tamiyo_stream.inference.micro_batcher import DeadlineMissed, GraphTooLarge, QueueFull
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.stage import StageStopped
from tamiyo_stream.policy.breakers import INFERENCE, attempt, record_outcome
from tamiyo_stream.policy.decision import Decision, decide
from tamiyo_stream.policy.events import PolicyEvent
from tamiyo_stream.policy.facts import Guard, IntakeFacts, Stamp, StepFacts
from tamiyo_stream.policy.failures import Failure, failure_of
from tamiyo_stream.policy.operator import heed
from tamiyo_stream.policy.settlement import settle
from tamiyo_stream.runs.intake import (
    Verdict,
    loss_delta,
    record_latency,
    state_age_ms,
    take_seeds,
    take_state,
)
from tamiyo_stream.runs.norms import observe
from tamiyo_stream.runs.state import BreakerRecord, RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.measurements import measure
from tamiyo_stream.worker.refusals import new_id
from tamiyo_stream.worker.step_clock import NS_PER_US, LiveClock, StepClock
from tamiyo_stream.worker.tables import TableKeeper

#: Steps after which a host blueprint that has not arrived counts as missing.
BLUEPRINT_PATIENCE_STEPS = 16
#: Annotation: ``timestamp_ns`` of the newest seed export that the decision saw; absent where there was none.
SEEDS_AS_OF = "seeds_as_of_ns"

log = structlog.get_logger("tamiyo.steps")


@dataclass(frozen=True, slots=True)
class Mail:
    """A verified, decoded entry and how it was delivered."""

    delivery: Delivery
    entry: Entry


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run's mail led to; ``decision`` is None where no state packet was accepted."""

    decision: Decision | None
    telemetry: TelemetryPacket | None
    reports: Sequence[FieldReport] = ()


@dataclass(slots=True)
class _Intake:
    """What was accepted of the mail, oldest first, and what was refused."""

    accepted: list[SystemStatePacket]
    refusals: list[Refusal]
    delta: float | None = None
    claimed_at: float = 0.0
    claimed_ns: int = 0
    gap_steps: int = 0

    @property
    def newest(self) -> SystemStatePacket:
        return self.accepted[-1]

    def refused(self, verdict: Verdict) -> int:
        return sum(refusal.reason == verdict for refusal in self.refusals)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the network said, or why it had no say; what its breaker has to report; time since the claim.

    ``policy_version``: of the policy that answered, of the newest known where none did.
    """

    output: NetworkOutput | None
    failure: str
    events: tuple[PolicyEvent, ...]
    elapsed_us: int
    policy_version: str


#: What the stage raises -> why the network had no say; everything else is ``inference_failed``.
_FAILURES: dict[type[Exception], Failure] = {
    DeadlineMissed: Failure.TIMEOUT_INFERENCE,
    NonFiniteOutput: Failure.NON_FINITE_OUTPUT,
    StageStopped: Failure.MODEL_MISSING,
    GraphTooLarge: Failure.GRAPH_TOO_LARGE,
    QueueFull: Failure.OVERLOADED,
}


class Inference(Protocol):
    """What a step needs of the inference stage."""

    async def submit(self, graph: StepGraph, deadline: float | None = None) -> NetworkOutput:
        """Return the network's output for ``graph``, or raise what kept it from one."""


class StepProcessor:
    """Takes a run from its mail to a decision. Keeps nothing of a run; of the network, the newest version it met.

    What depends on time is measured twice: at the claim (how old the state is, whether the breaker lets a call
    through, when an operator's word begins to hold) and at the answer, where the command is issued.
    """

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        keeper: TableKeeper,
        builder: GraphBuilder,
        inference: Inference,
        policy_version: str,
        clock: StepClock | None = None,
    ) -> None:
        self._settings = settings
        self._profile = settings.policy_profile
        self._tables = tables
        self._keeper = keeper
        self._builder = builder
        self._inference = inference
        self._policy_version = policy_version  # of the policy that answered last; a hot swap changes it
        self._clock: StepClock = clock or LiveClock()

    async def process(self, run: RunState, mail: Sequence[Mail]) -> Outcome:
        """Apply ``mail`` to ``run`` (in order) and return the decision on its newest step.

        An inference that fails or is late becomes a PAUSE without target and its reason; nothing is raised for it.
        """
        intake = self._take(run, mail)
        if not intake.accepted:
            return Outcome(None, self._refusals_only(run, intake))
        await self._keeper.ensure(intake.newest.blueprint_id, intake.newest.blueprint_version)
        for packet in intake.accepted[:-1]:
            observe(run.norms, self._builder.samples(run, packet))
        intake.claimed_ns = self._clock.claimed_ns(intake.claimed_at)
        run.count("superseded", len(intake.accepted) - 1)
        run.emergency_level = self._tables.emergency_level(run.run_id)
        told = heed(run, self._tables.directives_for(run.run_id), intake.claimed_ns)
        graph = self._builder.build(run, intake.newest, self._tables)
        observe(run.norms, self._builder.samples(run, intake.newest))
        facts = self._facts(run, intake, graph)  # before the wait: the tables may change meanwhile
        answer = await self._ask(run, graph, intake)
        stamp = self._stamp(intake, answer)
        decision = decide(
            facts, answer.output, stamp, failure=answer.failure, guard=Guard.of(run), profile=self._profile
        )
        decision = _dated(decision, run)
        settled = settle(run, decision, facts, stamp, self._profile.windows)
        self._note(run, graph, stamp.elapsed_ms)
        measured = measure(
            run,
            facts,
            graph,
            answer.output,
            decision,
            stamp,
            (*told, *answer.events, *decision.events, *settled.events),
            tables=self._tables,
            reports=len(settled.reports),
            pause_quota=self._profile.pause_quota,
        )
        return Outcome(decision, step_packet(replace(measured, refusals=intake.refusals)), settled.reports)

    def _take(self, run: RunState, mail: Sequence[Mail]) -> _Intake:
        intake = _Intake([], [])
        for item in mail:
            message = item.entry.message
            if isinstance(message, SeedExport):
                take_seeds(run, item.entry.event_id, message)
            elif isinstance(message, SystemStatePacket):
                self._take_state(run, item, message, intake)
        return intake

    def _take_state(self, run: RunState, item: Mail, packet: SystemStatePacket, intake: _Intake) -> None:
        delta, gaps = loss_delta(run, packet), run.counters.get("gap", 0)
        verdict = take_state(run, item.entry.event_id, packet)
        if verdict is Verdict.ACCEPTED:
            intake.accepted.append(packet)
            intake.delta, intake.claimed_at = delta, item.delivery.claimed_at
            intake.gap_steps += run.counters.get("gap", 0) - gaps
        else:
            log.info("state_refused", run_id=run.run_id, packet_id=packet.packet_id, reason=verdict.value)
            intake.refusals.append(Refusal(packet.packet_id, packet.global_step, verdict.value))
            intake.claimed_at = intake.claimed_at or item.delivery.claimed_at

    async def _ask(self, run: RunState, graph: StepGraph, intake: _Intake) -> _Answer:
        """Ask the network unless its breaker is open, and tell the breaker what became of it."""
        policy = self._profile.breaker
        passage = attempt(INFERENCE, run.breakers.get(INFERENCE, BreakerRecord()), intake.claimed_ns, policy)
        output, failure = (
            await self._infer(graph, intake) if passage.allowed else (None, str(Failure.BREAKER_OPEN))
        )
        elapsed_us = self._clock.elapsed_us(intake.claimed_at)
        version = output.policy_version if output is not None else self._policy_version
        self._policy_version = version
        failure = failure_of(
            output, failure, elapsed_ms=elapsed_us / 1000, budget_ms=self._settings.decision_deadline_ms
        )
        answered_ns = intake.claimed_ns + elapsed_us * NS_PER_US
        change = record_outcome(INFERENCE, passage.record, failure, answered_ns, policy)
        run.breakers[INFERENCE] = change.record
        events = (*passage.events, *change.events)
        return _Answer(None if failure else output, failure, events, elapsed_us, version)

    async def _infer(self, graph: StepGraph, intake: _Intake) -> tuple[NetworkOutput | None, str]:
        deadline = intake.claimed_at + self._settings.decision_deadline_ms / 1000
        try:
            return await self._inference.submit(graph, deadline), ""
        except Exception as error:  # noqa: BLE001 - whatever the network does, the run gets its answer
            failure = _FAILURES.get(type(error), Failure.INFERENCE_FAILED)
            log.error(failure.value, run_id=graph.run_id, packet_id=graph.packet_id, error=repr(error))
            return None, failure

    def _facts(self, run: RunState, intake: _Intake, graph: StepGraph) -> StepFacts:
        packet = intake.newest
        host = self._tables.hosts.get(packet.blueprint_id or run.blueprint_id or "")
        host_graph = host.graph if host is not None else None
        parameters = host_graph.parameters if host_graph is not None else None
        capabilities = host_graph.capabilities if host_graph is not None else None
        seeds = {seed.seed_id: seed for seed in (*(packet.seed_states or ()), *run.seeds.values())}
        return StepFacts(
            packet=packet,
            seeds=[seeds[seed_id] for seed_id in graph.seed_ids],
            kernels=[self._tables.kernels[kernel_id] for kernel_id in graph.kernel_ids],
            layer_ids=graph.layer_ids,
            sheets=dict(self._tables.sheets),
            optimizer_families=(parameters.optimizer_family or []) if parameters is not None else [],
            coverage_average=graph.coverage.average,
            coverage_keys=graph.coverage.keys,
            coverage_types=graph.coverage.types,
            superseded_packet_ids=[superseded.packet_id for superseded in intake.accepted[:-1]],
            loss_delta=intake.delta,
            safety_failures=dict(self._tables.failures),
            host_blending_methods=capabilities.allowed_blending_methods if capabilities is not None else None,
            intake=IntakeFacts(
                state_age_ms=state_age_ms(packet, intake.claimed_ns),
                gap_steps=intake.gap_steps,
                stale_packets=intake.refused(Verdict.STALE),
                duplicate_packets=intake.refused(Verdict.DUPLICATE),
            ),
            feature_manifest=manifest_digest(),
        )

    def _stamp(self, intake: _Intake, answer: _Answer) -> Stamp:
        return Stamp(
            command_id=new_id(),
            issued_at=intake.claimed_ns + answer.elapsed_us * NS_PER_US,
            execution_deadline_ms=self._settings.execution_deadline_ms,
            lr_change_max=self._settings.lr_change_max,
            policy_version=answer.policy_version,
            elapsed_ms=answer.elapsed_us / 1000,
            budget_ms=self._settings.decision_deadline_ms,
        )

    def _note(self, run: RunState, graph: StepGraph, elapsed_ms: float) -> None:
        run.count("decided")
        if graph.learned_fallbacks:
            run.count("learned_fallback_steps")
        record_latency(run, elapsed_ms, self._settings.decision_deadline_ms)
        _report_missing(run, graph)

    def _refusals_only(self, run: RunState, intake: _Intake) -> TelemetryPacket | None:
        if not intake.refusals:
            return None
        return step_packet(
            StepMeasurements(
                run_id=run.run_id,
                packet_id=intake.refusals[-1].packet_id,
                global_step=None,
                timestamp_ns=self._clock.claimed_ns(intake.claimed_at),
                policy_version=self._policy_version,
                counters=run.counters,
                refusals=intake.refusals,
            )
        )


def _dated(decision: Decision, run: RunState) -> Decision:
    """Return ``decision`` with the time of the seed export it saw: exports travel on a stream of their own."""
    if not run.seeds_timestamp_ns:
        return decision
    annotations = {**decision.command.annotations, SEEDS_AS_OF: str(run.seeds_timestamp_ns)}
    return replace(decision, command=msgspec.structs.replace(decision.command, annotations=annotations))


def _missing_features(graph: StepGraph) -> list[str]:
    """Return the coverage keys of which nothing arrived."""
    return [key for key, share in graph.coverage.keys.items() if share == 0.0]


def _report_missing(run: RunState, graph: StepGraph) -> None:
    """Log once per run what upstream does not send, as soon as its blueprint is there or is overdue."""
    if run.missing_reported or not (graph.layer_ids or run.counters.get("decided", 0) >= BLUEPRINT_PATIENCE_STEPS):
        return
    run.missing_reported = True
    log.info(
        "missing_features",
        run_id=run.run_id,
        coverage=round(graph.coverage.average, 3),
        mandatory_coverage=round(graph.coverage.mandatory, 3),
        missing=_missing_features(graph),
    )
