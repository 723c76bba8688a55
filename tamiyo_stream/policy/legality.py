"""Which slots of the action table a run may be given now, and why not the others (design §9, domain.md §4.9).

Illegal slots are masked before the arg-max: the network can prefer them, it cannot choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.enums import (
    LEGAL_TRANSITIONS,
    BlueprintTier,
    CircuitBreakerState,
    CompileStatus,
    HandlingClass,
    HazardBand,
    SeedLifecycleStage,
)
from schemas.kasmina import SeedState
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.policy.actions import ACTION_TABLE, Action, Slot
from tamiyo_stream.policy.blending import usable_methods
from tamiyo_stream.policy.thresholds import RiskThresholds

BoolArray = npt.NDArray[np.bool_]

#: A kernel at or above this risk is never germinated (bp_quarantine, domain.md §5.1 rule 5).
QUARANTINE_RISK = RiskThresholds().blueprint_risk_quarantine
#: Key of ``SeedState.metrics``: 1 = Kasmina paused the seed, 0 = it did not, absent = Kasmina does not say.
PAUSED_METRIC = "paused"
#: Stages in which a kernel runs and could be paused.
_RUNNING = frozenset(
    {
        SeedLifecycleStage.TRAINING,
        SeedLifecycleStage.BLENDING,
        SeedLifecycleStage.SHADOWING,
        SeedLifecycleStage.PROBATIONARY,
    }
)
#: Tiers that an operator must have approved, and the reason where he did not.
_APPROVED_ONLY = {BlueprintTier.EXPERIMENTAL: "tier_experimental", BlueprintTier.HIGH_RISK: "tier_high_risk"}


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be acted on: positions in the graph's seed and kernel order.

    ``germinable``: DORMANT seeds that may blend; ``cullable``: seeds whose stage allows CULLED; ``pausable`` and
    ``resumable``: running seeds that Kasmina reports as not paused, and as paused; ``kernels``: those that may be
    grafted; ``refused_kernels``: the others, with the reason.
    """

    germinable: tuple[int, ...]
    cullable: tuple[int, ...]
    kernels: tuple[int, ...]
    has_optimizer: bool
    pausable: tuple[int, ...] = ()
    resumable: tuple[int, ...] = ()
    refused_kernels: Mapping[int, str] | None = None
    kernel_breaker: CircuitBreakerState = CircuitBreakerState.UNKNOWN


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What legality depends on beside seeds and kernels. ``kernel_breaker`` is UNKNOWN where nobody reports it."""

    has_optimizer: bool
    kernel_breaker: CircuitBreakerState = CircuitBreakerState.UNKNOWN
    host_blending_methods: Sequence[str] | None = None
    safety_failures: Mapping[str, str] | None = None
    quarantine_risk: float = QUARANTINE_RISK


def find_candidates(
    seeds: Sequence[SeedState],
    kernels: Sequence[Blueprint],
    sheets: Mapping[str, BlueprintSafetySheet],
    around: Surroundings,
) -> Candidates:
    """Return what may be acted on; a seed that Kasmina holds in quarantine is left alone."""
    free = [(position, seed) for position, seed in enumerate(seeds) if not seed.quarantine_only]
    running = [(position, seed.metrics.get(PAUSED_METRIC)) for position, seed in free if seed.stage in _RUNNING]
    failures = around.safety_failures or {}
    verdicts = {
        position: refusal_of(
            kernel,
            sheets.get(kernel.blueprint_id),
            unsafe=kernel.blueprint_id in failures,
            quarantine_risk=around.quarantine_risk,
        )
        for position, kernel in enumerate(kernels)
    }
    return Candidates(
        germinable=tuple(p for p, seed in free if _may_germinate(seed, around.host_blending_methods)),
        cullable=tuple(p for p, seed in free if SeedLifecycleStage.CULLED in LEGAL_TRANSITIONS[seed.stage]),
        kernels=tuple(position for position, reason in verdicts.items() if reason is None),
        has_optimizer=around.has_optimizer,
        pausable=tuple(p for p, paused in running if paused == 0.0),
        resumable=tuple(p for p, paused in running if paused == 1.0),
        refused_kernels={position: reason for position, reason in verdicts.items() if reason is not None},
        kernel_breaker=around.kernel_breaker,
    )


def refusal_of(
    kernel: Blueprint,
    sheet: BlueprintSafetySheet | None,
    *,
    unsafe: bool = False,
    quarantine_risk: float = QUARANTINE_RISK,
) -> str | None:
    """Return why ``kernel`` must not be grafted, or None. The sheet's band and handling count before its score.

    ``unsafe``: Urabrask could not evaluate it; an older sheet stays in force, without one the kernel is refused.
    """
    descriptor = kernel.descriptor
    if descriptor is None:
        return "no_descriptor"
    risk = sheet.risk_score if sheet is not None and sheet.risk_score is not None else descriptor.risk
    refusals = (
        (sheet is not None and sheet.handling_class is HandlingClass.QUARANTINE, "bsds_handling_quarantine"),
        (sheet is not None and sheet.hazard_band is HazardBand.CRITICAL, "bsds_hazard_critical"),
        # Written so that a risk that is not a number is refused too.
        (descriptor.quarantine_only or (risk is not None and not risk < quarantine_risk), "bp_quarantine"),
        (descriptor.approval_required and not descriptor.approved, "approval_required"),
        (descriptor.tier in _APPROVED_ONLY and not descriptor.approved, _APPROVED_ONLY.get(descriptor.tier, "")),
        (unsafe and sheet is None, "safety_unknown"),
        (kernel.compiled is not None and kernel.compiled.status is CompileStatus.FAILED, "compile_failed"),
    )
    return next((reason for refused, reason in refusals if refused), None)


def _may_germinate(seed: SeedState, host_methods: Sequence[str] | None) -> bool:
    return SeedLifecycleStage.GERMINATED in LEGAL_TRANSITIONS[seed.stage] and bool(
        usable_methods(seed.allowed_blending_methods, host_methods)
    )


#: Why a kernel slot or a graft has no seed: the reason code of domain.md §4.7.
NO_SEED = "no_seed_candidates"


def _graft_refusal(_: Slot, found: Candidates) -> str:
    return NO_SEED if not found.germinable else "" if found.kernels else "no_kernel"


def _germinate_refusal(slot: Slot, found: Candidates) -> str:
    if slot.kernel in found.kernels:
        return "" if found.germinable else NO_SEED
    return (found.refused_kernels or {}).get(slot.kernel if slot.kernel is not None else -1, "no_such_kernel")


def _breaker_refusal(allowed_from: frozenset[CircuitBreakerState]) -> Callable[[Slot, Candidates], str]:
    return lambda _, found: (
        "" if found.kernel_breaker in allowed_from else f"breaker_{found.kernel_breaker.name.lower()}"
    )


#: Action -> why this slot may not be chosen, "" where it may.
_REFUSALS: dict[Action, Callable[[Slot, Candidates], str]] = {
    Action.GRAFT: _graft_refusal,
    Action.OPTIMIZER: lambda _, found: "" if found.has_optimizer else "no_optimizer",
    Action.PAUSE: lambda *_: "",
    Action.BREAKER_OPEN: _breaker_refusal(frozenset({CircuitBreakerState.CLOSED, CircuitBreakerState.HALF_OPEN})),
    Action.BREAKER_CLOSE: _breaker_refusal(frozenset({CircuitBreakerState.OPEN})),
    Action.CULL: lambda _, found: "" if found.cullable else NO_SEED,
    Action.RESUME: lambda _, found: "" if found.resumable else "no_paused_seed",
    Action.HOLD: lambda *_: "",
    Action.GERMINATE: _germinate_refusal,
}


def slot_refusal(slot: Slot, candidates: Candidates) -> str:
    """Return why ``slot`` may not be chosen, "" where it may."""
    return _REFUSALS[slot.action](slot, candidates)


def legal_slots(candidates: Candidates) -> BoolArray:
    """Return the mask over the action table, [32] bool; pause and hold are always legal."""
    return np.array([not slot_refusal(slot, candidates) for slot in ACTION_TABLE])
