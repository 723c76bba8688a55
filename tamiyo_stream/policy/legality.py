"""Which slots of the action table a run may be given now, and why not the others (design §9, domain.md §4.9).

Illegal slots are masked before the arg-max: the network can prefer them, it cannot choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.enums import LEGAL_TRANSITIONS, BlueprintTier, HandlingClass, HazardBand, SeedLifecycleStage
from schemas.kasmina import SeedState
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.policy.actions import ACTION_TABLE, Action, Slot

BoolArray = npt.NDArray[np.bool_]

#: A kernel at or above this risk is never germinated (bp_quarantine, domain.md §5.1 rule 5).
QUARANTINE_RISK = 0.8


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be acted on: positions in the graph's seed and kernel order.

    ``germinable``: DORMANT seeds; ``cullable``: seeds whose stage allows CULLED; ``kernels``: kernels that may be
    grafted.
    """

    germinable: tuple[int, ...]
    cullable: tuple[int, ...]
    kernels: tuple[int, ...]
    has_optimizer: bool


def find_candidates(
    seeds: Sequence[SeedState],
    kernels: Sequence[Blueprint],
    sheets: Mapping[str, BlueprintSafetySheet],
    *,
    has_optimizer: bool,
) -> Candidates:
    """Return what may be acted on; a seed that Kasmina holds in quarantine is left alone."""
    stages = [(position, seed.stage) for position, seed in enumerate(seeds) if not seed.quarantine_only]
    return Candidates(
        germinable=tuple(p for p, stage in stages if SeedLifecycleStage.GERMINATED in LEGAL_TRANSITIONS[stage]),
        cullable=tuple(p for p, stage in stages if SeedLifecycleStage.CULLED in LEGAL_TRANSITIONS[stage]),
        kernels=tuple(
            p for p, kernel in enumerate(kernels) if refusal_of(kernel, sheets.get(kernel.blueprint_id)) is None
        ),
        has_optimizer=has_optimizer,
    )


def refusal_of(kernel: Blueprint, sheet: BlueprintSafetySheet | None) -> str | None:
    """Return why ``kernel`` must not be grafted, or None. The sheet's band and handling count before its score."""
    descriptor = kernel.descriptor
    if descriptor is None:
        return "no_descriptor"
    risk = sheet.risk_score if sheet is not None and sheet.risk_score is not None else descriptor.risk
    refusals = (
        (sheet is not None and sheet.handling_class is HandlingClass.QUARANTINE, "bsds_handling_quarantine"),
        (sheet is not None and sheet.hazard_band is HazardBand.CRITICAL, "bsds_hazard_critical"),
        (descriptor.quarantine_only or (risk is not None and risk >= QUARANTINE_RISK), "bp_quarantine"),
        (descriptor.approval_required and not descriptor.approved, "approval_required"),
        (descriptor.tier is BlueprintTier.HIGH_RISK and not descriptor.approved, "tier_high_risk"),
    )
    return next((reason for refused, reason in refusals if refused), None)


#: Action -> may this slot be chosen, given the candidates. Breaker and resume wait for a feed that reports their
#: state.
_RULES: dict[Action, Callable[[Slot, Candidates], bool]] = {
    Action.GRAFT: lambda _, found: bool(found.germinable and found.kernels),
    Action.OPTIMIZER: lambda _, found: found.has_optimizer,
    Action.PAUSE: lambda *_: True,
    Action.BREAKER_OPEN: lambda *_: False,
    Action.BREAKER_CLOSE: lambda *_: False,
    Action.CULL: lambda _, found: bool(found.cullable),
    Action.RESUME: lambda *_: False,
    Action.HOLD: lambda *_: True,
    Action.GERMINATE: lambda slot, found: bool(found.germinable) and slot.kernel in found.kernels,
}


def legal_slots(candidates: Candidates) -> BoolArray:
    """Return the mask over the action table, [32] bool; pause and hold are always legal."""
    return np.array([_RULES[slot.action](slot, candidates) for slot in ACTION_TABLE])
