"""What a step's telemetry is made of, gathered from the stages that a worker runs (domain.md §6.2)."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.hub.step_telemetry import BreakerReading, FieldReportCounts, StepEvent, StepMeasurements
from tamiyo_stream.inference.output import NetworkOutput
from tamiyo_stream.policy.decision import Decision
from tamiyo_stream.policy.facts import Stamp, StepFacts
from tamiyo_stream.policy.signals import kernel_risk
from tamiyo_stream.runs.intake import finite
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables


def measure(  # noqa: PLR0913 - one packet shows all stages
    run: RunState,
    facts: StepFacts,
    graph: StepGraph,
    output: NetworkOutput | None,
    decision: Decision,
    stamp: Stamp,
    events: Sequence[StepEvent],
    *,
    tables: Tables,
    reports: int,
    pause_quota: int,
) -> StepMeasurements:
    """Return the measurements of one decided step; refusals are the caller's to add.

    ``reports``: field reports that go into the same commit.
    """
    packet, issued = facts.packet, decision.issued
    named = _blueprints_of(run, packet, graph)
    kernel = facts.kernels[issued.kernel] if issued.kernel is not None else None
    return StepMeasurements(
        run_id=run.run_id,
        packet_id=packet.packet_id,
        global_step=packet.global_step,
        timestamp_ns=stamp.issued_at,
        policy_version=stamp.policy_version,
        reason=decision.reason,
        training_loss=finite(packet.training_loss),
        validation_loss=finite(packet.validation_loss),
        loss_delta=facts.loss_delta,
        inference_ms=output.latency_ms if output is not None else None,
        decision_ms=stamp.elapsed_ms,
        budget_ms=stamp.budget_ms,
        value_estimate=decision.value_estimate,
        risk_index=decision.risk_index,
        risk_score=decision.risk_score,
        coverage_average=graph.coverage.average,
        coverage_mandatory=graph.coverage.mandatory,
        coverage_types=graph.coverage.types,
        bsds_missing=len(tables.unsheeted(named)),
        bsds_failed=sum(name in tables.failures for name in named),
        learned_fallbacks=graph.learned_fallbacks,
        sampled_edges=graph.sampled_edges,
        counters=run.counters,
        problems=graph.problems,
        command_type=decision.command.command_type,
        conservative_mode=run.conservative.active,
        blending_method=issued.blending.method if issued.blending is not None else "",
        blending_method_index=issued.blending.index if issued.blending is not None else None,
        blending_start=issued.blending.start if issued.blending is not None else None,
        blending_end=issued.blending.end if issued.blending is not None else None,
        seed_index=_position(issued.seed, decision),
        blueprint_index=_position(issued.kernel, decision),
        seed_score=issued.seed_score,
        blueprint_risk=kernel_risk(facts, issued.kernel) if issued.kernel is not None else None,
        tier=kernel.descriptor.tier.name if kernel is not None and kernel.descriptor is not None else "",
        pause_quota=pause_quota,
        pause_quota_remaining=max(0, pause_quota - run.pauses.used),
        breakers={name: BreakerReading(record.state, record.failures) for name, record in run.breakers.items()},
        field_reports=FieldReportCounts(published=reports, pending=len(run.windows)),
        events=events,
    )


def _blueprints_of(run: RunState, packet: SystemStatePacket, graph: StepGraph) -> list[str]:
    """Return the host model, where its blueprint is known, and the candidate kernels."""
    host = [packet.blueprint_id or run.blueprint_id or ""] if graph.layer_ids else []
    return [*host, *graph.kernel_ids]


def _position(position: int | None, decision: Decision) -> int | None:
    """Return the position, -1 where the network chose none, None where it had no say."""
    if decision.selection is None:
        return None
    return -1 if position is None else position
