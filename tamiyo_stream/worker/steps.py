"""One run's mail becomes one commit: merge, build, infer, decide (the middle of design §2).

Everything a run was sent since its last commit is taken together. Of several state packets the newest is decided
and the older ones are superseded by it: applied, acknowledged and named in the command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from consumers.delivery import Delivery
from schemas.entry import Entry
from schemas.kasmina import SeedExport
from schemas.telemetry import TelemetryPacket
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.hub.step_telemetry import CoverageLimits, Refusal, StepMeasurements, step_packet
from tamiyo_stream.inference.output import NetworkOutput
from tamiyo_stream.inference.stage import InferenceStage
from tamiyo_stream.policy.decision import Decision, Stamp, StepFacts, decide
from tamiyo_stream.runs.intake import Verdict, finite, loss_delta, record_latency, take_seeds, take_state
from tamiyo_stream.runs.norms import observe
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.refusals import new_id
from tamiyo_stream.worker.tables import TableKeeper

#: Steps after which a host blueprint that has not arrived counts as missing.
BLUEPRINT_PATIENCE_STEPS = 16

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


@dataclass(slots=True)
class _Intake:
    """What was accepted of the mail, oldest first, and what was refused."""

    accepted: list[SystemStatePacket]
    refusals: list[Refusal]
    delta: float | None = None
    claimed_at: float = 0.0


class StepProcessor:
    """Takes a run from its mail to a decision. Stateless but for the stages it was given."""

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        keeper: TableKeeper,
        builder: GraphBuilder,
        inference: InferenceStage,
        policy_version: str,
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._keeper = keeper
        self._builder = builder
        self._inference = inference
        self._policy_version = policy_version

    async def process(self, run: RunState, mail: Sequence[Mail]) -> Outcome:
        """Apply ``mail`` to ``run`` (in order) and return the decision on its newest step.

        An inference that fails becomes a PAUSE without target and its reason; nothing is raised for it.
        """
        intake = self._take(run, mail)
        if not intake.accepted:
            return Outcome(None, self._refusals_only(run, intake))
        newest = intake.accepted[-1]
        await self._keeper.ensure(newest.blueprint_id, newest.blueprint_version)
        for packet in intake.accepted[:-1]:
            observe(run.norms, self._builder.samples(run, packet))
        run.count("superseded", len(intake.accepted) - 1)
        graph = self._builder.build(run, newest, self._tables)
        observe(run.norms, self._builder.samples(run, newest))
        facts = self._facts(run, intake, graph)  # before the wait: the tables may change meanwhile
        output, failure = await self._infer(graph)
        decision = decide(facts, output, self._stamp(intake), failure=failure)
        run.count("decided")
        if graph.learned_fallbacks:
            run.count("learned_fallback_steps")
        record_latency(run, _elapsed_ms(intake), self._settings.decision_deadline_ms)
        _report_missing(run, graph)
        return Outcome(decision, self._telemetry(run, intake, graph, output, decision))

    def _take(self, run: RunState, mail: Sequence[Mail]) -> _Intake:
        intake = _Intake([], [])
        for item in mail:
            message = item.entry.message
            if isinstance(message, SeedExport):
                take_seeds(run, item.entry.event_id, message)
            elif isinstance(message, SystemStatePacket):
                delta = loss_delta(run, message)
                verdict = take_state(run, item.entry.event_id, message)
                if verdict is Verdict.ACCEPTED:
                    intake.accepted.append(message)
                    intake.delta, intake.claimed_at = delta, item.delivery.claimed_at
                else:
                    log.info("state_refused", run_id=run.run_id, packet_id=message.packet_id, reason=verdict.value)
                    intake.refusals.append(Refusal(message.packet_id, message.global_step, verdict.value))
        return intake

    async def _infer(self, graph: StepGraph) -> tuple[NetworkOutput | None, str]:
        try:
            return await self._inference.submit(graph), ""
        except Exception as error:  # noqa: BLE001 - whatever the network does, the run gets its answer
            log.error("inference_failed", run_id=graph.run_id, packet_id=graph.packet_id, error=repr(error))
            return None, "inference_failed"

    def _facts(self, run: RunState, intake: _Intake, graph: StepGraph) -> StepFacts:
        packet = intake.accepted[-1]
        host = self._tables.hosts.get(packet.blueprint_id or "")
        parameters = host.graph.parameters if host is not None and host.graph is not None else None
        seeds = {seed.seed_id: seed for seed in (*(packet.seed_states or ()), *run.seeds.values())}
        return StepFacts(
            packet=packet,
            seeds=[seeds[seed_id] for seed_id in graph.seed_ids],
            kernels=[self._tables.kernels[kernel_id] for kernel_id in graph.kernel_ids],
            layer_ids=graph.layer_ids,
            sheets=self._tables.sheets,
            optimizer_families=(parameters.optimizer_family or []) if parameters is not None else [],
            coverage_average=graph.coverage.average,
            coverage_keys=graph.coverage.keys,
            coverage_types=graph.coverage.types,
            superseded_packet_ids=[packet.packet_id for packet in intake.accepted[:-1]],
        )

    def _stamp(self, intake: _Intake) -> Stamp:
        return Stamp(
            command_id=new_id(),
            issued_at=time.time_ns(),
            execution_deadline_ms=self._settings.execution_deadline_ms,
            lr_change_max=self._settings.lr_change_max,
            policy_version=self._policy_version,
            elapsed_ms=_elapsed_ms(intake),
        )

    def _telemetry(
        self,
        run: RunState,
        intake: _Intake,
        graph: StepGraph,
        output: NetworkOutput | None,
        decision: Decision,
    ) -> TelemetryPacket:
        packet = intake.accepted[-1]
        host = [packet.blueprint_id or run.blueprint_id or ""] if graph.layer_ids else []
        blueprint_ids = [*host, *graph.kernel_ids]
        unsheeted = self._tables.unsheeted(blueprint_ids)
        return step_packet(
            StepMeasurements(
                run_id=run.run_id,
                packet_id=packet.packet_id,
                global_step=packet.global_step,
                timestamp_ns=decision.command.issued_at,
                policy_version=self._policy_version,
                reason=decision.reason,
                training_loss=finite(packet.training_loss),
                validation_loss=finite(packet.validation_loss),
                loss_delta=intake.delta,
                inference_ms=output.latency_ms if output is not None else None,
                decision_ms=run.history[-1].decision_latency_ms,
                value_estimate=output.value_estimate if output is not None else None,
                risk_index=decision.risk_index,
                risk_score=decision.risk_score,
                coverage_average=graph.coverage.average,
                coverage_mandatory=graph.coverage.mandatory,
                coverage_limits=CoverageLimits(self._settings.coverage_warn, self._settings.coverage_critical),
                coverage_types=graph.coverage.types,
                missing_features=_missing_features(graph),
                bsds_missing=len(unsheeted),
                bsds_failed=sum(name in self._tables.failures for name in blueprint_ids),
                learned_fallbacks=graph.learned_fallbacks,
                sampled_edges=graph.sampled_edges,
                counters=run.counters,
                refusals=intake.refusals,
                problems=graph.problems,
            )
        )

    def _refusals_only(self, run: RunState, intake: _Intake) -> TelemetryPacket | None:
        if not intake.refusals:
            return None
        return step_packet(
            StepMeasurements(
                run_id=run.run_id,
                packet_id=intake.refusals[-1].packet_id,
                global_step=None,
                timestamp_ns=time.time_ns(),
                policy_version=self._policy_version,
                counters=run.counters,
                refusals=intake.refusals,
            )
        )


def _elapsed_ms(intake: _Intake) -> float:
    return (time.monotonic() - intake.claimed_at) * 1000


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
