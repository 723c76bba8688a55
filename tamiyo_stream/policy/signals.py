"""The signals that the risk rules read: one frozen value per step, None = nobody measured it (domain.md §5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.enums import (
    BlueprintTier,
    CircuitBreakerState,
    EmergencyLevel,
    HandlingClass,
    HazardBand,
    Provenance,
)
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from tamiyo_stream.policy.actions import Action
from tamiyo_stream.policy.breakers import INFERENCE
from tamiyo_stream.policy.facts import Guard, StepFacts
from tamiyo_stream.policy.quota import is_spent
from tamiyo_stream.policy.selection import Selection

#: Keys without any coverage that an event names; the full map travels in the command's annotations.
NAMED_MISSING = 16


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the policy would do if nothing were risky. ``selection`` is None where the network had no say.

    ``wants_missing_seed``: the network's first preference needs a seed that there is not.
    """

    selection: Selection | None = None
    risk_score: float | None = None
    risk_index: int | None = None
    value_estimate: float | None = None
    wants_missing_seed: bool = False


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything a risk rule may look at. Ratios 0..1, times in ms, as the names say.

    ``grafts``: the proposal puts a kernel into a seed; ``blueprint_*`` describe that kernel. ``hazard_band``,
    ``handling_class`` and ``provenance`` are those of the worse sheet of that kernel and of the host model;
    ``host_risk`` is the host's own score.
    """

    grafts: bool = False
    pauses_seed: bool = False
    pause_quota_spent: bool = False
    wants_missing_seed: bool = False
    loss_finite: bool = True
    failure: str = ""
    budget_ms: float | None = None
    metadata_timed_out: bool = False
    metadata_budget_ms: float | None = None
    inference_breaker: CircuitBreakerState = CircuitBreakerState.CLOSED
    emergency_level: EmergencyLevel = EmergencyLevel.UNSPECIFIED
    conservative: bool = False
    conservative_reason: str = ""
    risk_score: float | None = None
    risk_index: int | None = None
    blueprint_risk: float | None = None
    blueprint_tier: BlueprintTier = BlueprintTier.UNSPECIFIED
    quarantine_only: bool = False
    host_risk: float | None = None
    sheet_present: bool = False
    sheet_risk: float | None = None
    hazard_band: HazardBand = HazardBand.UNSPECIFIED
    handling_class: HandlingClass = HandlingClass.UNSPECIFIED
    provenance: Provenance = Provenance.UNSPECIFIED
    loss_delta: float | None = None
    hook_latency_ms: float | None = None
    step_latency_ms: float | None = None
    kasmina_apply_ms: float | None = None
    kasmina_finalize_ms: float | None = None
    isolation_violations: float | None = None
    loss_volatility: float | None = None
    gradient_variance: float | None = None
    gradient_conflict_rate: float | None = None
    optimizer_lr: float | None = None
    gpu_util_percent: float | None = None
    gpu_free_gb: float | None = None
    cpu_util_percent: float | None = None
    coverage_average: float | None = None
    missing_features: tuple[str, ...] = field(default=(), repr=False)
    compile_reason: str = ""
    compile_device: str = ""
    state_age_ms: float | None = None
    gap_steps: int = 0
    stale_packets: int = 0
    duplicate_packets: int = 0


#: Signal -> name in the packet's metrics, or among what Tolaria and Kasmina reported beside it (domain.md §2.4).
METRIC_SIGNALS: dict[str, str] = {
    "hook_latency_ms": "hook_latency_ms",
    "step_latency_ms": "step_latency_ms",
    "kasmina_apply_ms": "kasmina.apply_ms",
    "kasmina_finalize_ms": "kasmina.finalize_ms",
    "isolation_violations": "kasmina.isolation.violations",
    "loss_volatility": "loss_volatility",
    "gradient_variance": "grad_var",
    "gradient_conflict_rate": "grad_conflict_rate",
    "optimizer_lr": "optimizer_lr",
    "gpu_util_percent": "gpu_util_percent",
    "gpu_free_gb": "gpu_mem_free_gb",
    "cpu_util_percent": "cpu_util_percent",
}


def read_signals(
    facts: StepFacts, guard: Guard, proposal: Proposal, *, failure: str, budget_ms: float | None, pause_quota: int
) -> Signals:
    """Return the step's signals; ``failure`` is why the network had no say, "" where it had."""
    selection, packet = proposal.selection, facts.packet
    epoch = epoch_of(facts, guard)
    return Signals(
        **_blueprint_signals(facts, selection),
        **_measured(facts),
        pauses_seed=selection is not None and selection.action is Action.PAUSE and selection.seed is not None,
        pause_quota_spent=is_spent(guard.pauses, epoch, pause_quota),
        wants_missing_seed=proposal.wants_missing_seed,
        loss_finite=packet.training_loss is None or math.isfinite(packet.training_loss),
        failure=failure,
        budget_ms=budget_ms,
        metadata_timed_out=facts.intake.metadata_timed_out,
        metadata_budget_ms=facts.intake.metadata_budget_ms,
        inference_breaker=_state(guard, INFERENCE),
        emergency_level=guard.emergency_level,
        conservative=guard.conservative.active,
        conservative_reason=guard.conservative.reason,
        risk_score=proposal.risk_score,
        risk_index=proposal.risk_index,
        loss_delta=facts.loss_delta,
        coverage_average=facts.coverage_average,
        missing_features=tuple(key for key, share in facts.coverage_keys.items() if share == 0.0),
        compile_reason=facts.compiled.reason if facts.compiled.report_due else "",
        compile_device=facts.compiled.device,
        state_age_ms=facts.intake.state_age_ms,
        gap_steps=facts.intake.gap_steps,
        stale_packets=facts.intake.stale_packets,
        duplicate_packets=facts.intake.duplicate_packets,
    )


def epoch_of(facts: StepFacts, guard: Guard) -> int:
    """Return the epoch the step belongs to: the packet's, else the last one known, else 0."""
    epoch = facts.packet.current_epoch
    return epoch if epoch is not None else guard.last_epoch or 0


def kernel_risk(facts: StepFacts, kernel: int) -> float | None:
    """Return the risk of the kernel at this position: its sheet's score, else its descriptor's."""
    blueprint = facts.kernels[kernel]
    sheet = facts.sheets.get(blueprint.blueprint_id)
    if sheet is not None and sheet.risk_score is not None:
        return sheet.risk_score
    return blueprint.descriptor.risk if blueprint.descriptor is not None else None


def subject_sheet(facts: StepFacts, selection: Selection | None) -> BlueprintSafetySheet | None:
    """Return the sheet that gates the decision: the worse one of the kernel to graft and of the host model."""
    names = [facts.packet.blueprint_id or ""]
    if selection is not None and selection.kernel is not None:
        names.insert(0, facts.kernels[selection.kernel].blueprint_id)
    sheets = [facts.sheets[name] for name in names if name in facts.sheets]
    return max(sheets, key=lambda sheet: (sheet.handling_class, sheet.hazard_band), default=None)


def _blueprint_signals(facts: StepFacts, selection: Selection | None) -> dict[str, Any]:
    host = facts.sheets.get(facts.packet.blueprint_id or "")
    found: dict[str, Any] = {"host_risk": host.risk_score if host is not None else None}
    if selection is not None and selection.kernel is not None:
        descriptor = facts.kernels[selection.kernel].descriptor
        found["grafts"] = True
        found["blueprint_risk"] = kernel_risk(facts, selection.kernel)
        if descriptor is not None:
            found["blueprint_tier"] = descriptor.tier
            found["quarantine_only"] = descriptor.quarantine_only
    sheet = subject_sheet(facts, selection)
    if sheet is not None:
        found |= {
            "sheet_present": True,
            "sheet_risk": sheet.risk_score,
            "hazard_band": sheet.hazard_band,
            "handling_class": sheet.handling_class,
            "provenance": sheet.provenance,
        }
    return found


def _measured(facts: StepFacts) -> dict[str, Any]:
    reported: Mapping[str, float] = {**facts.telemetry, **facts.packet.training_metrics}
    found = {signal: reported.get(name) for signal, name in METRIC_SIGNALS.items()}
    for signal, value in _device(facts.packet).items():
        found[signal] = value if found[signal] is None else found[signal]
    return found


def _device(packet: SystemStatePacket) -> dict[str, float | None]:
    """Return what the hardware context says, for packets whose metrics do not."""
    hardware = packet.hardware_context
    if hardware is None:
        return {}
    if hardware.device_type == "cuda":
        return {"gpu_util_percent": hardware.utilization_percent, "gpu_free_gb": hardware.available_memory_gb}
    return {"cpu_util_percent": hardware.utilization_percent} if hardware.device_type == "cpu" else {}


def _state(guard: Guard, name: str) -> CircuitBreakerState:
    record = guard.breakers.get(name)
    return record.state if record is not None else CircuitBreakerState.CLOSED
