"""Urabrask, the safety evaluator: Blueprint Safety Data Sheets (``domain.md`` §2.12)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.enums import HandlingClass, HazardBand, Provenance, ResourceProfile
from schemas.record import Fraction, Identifier, Message, Record, TimestampNs, doc

NonNegative = Annotated[float, Meta(ge=0.0)]


class Mitigation(Record, frozen=True, kw_only=True):
    """How to use the blueprint safely."""

    recommendation: Annotated[str | None, doc("Advice, as DRIFT_CONTROLLED")] = None
    cooldown_ms: Annotated[NonNegative | None, doc("Wait between aggressive updates", "ms")] = None
    notes: Annotated[str | None, doc("Safe-handling notes")] = None


class BlueprintSafetySheet(Message, frozen=True, kw_only=True):
    """The safety sheet (BSDS) of one blueprint. Consumers gate on the band first, then on the score.

    Sheets never change: a changed blueprint gets a new id. ``hazards`` are findings of the crucible.
    """

    blueprint_id: Annotated[Identifier, doc("Blueprint the sheet is about")]
    risk_score: Annotated[Fraction | None, doc("Overrides the descriptor's risk", "1")] = None
    hazard_band: HazardBand = HazardBand.UNSPECIFIED
    handling_class: HandlingClass = HandlingClass.UNSPECIFIED
    resource_profile: ResourceProfile = ResourceProfile.UNSPECIFIED
    recommendation: Annotated[str | None, doc("Recommended grafting strategy")] = None
    issued_at: TimestampNs
    provenance: Provenance = Provenance.UNSPECIFIED
    mitigation: Annotated[Mitigation | None, doc("How to use the blueprint safely")] = None
    hazards: Annotated[
        dict[str, str | float | bool],
        doc("Hazard name -> finding (crucible v1: grad_instability, nan_inf, precision, oscillation, …)"),
    ] = {}


class BlueprintSafetyFailed(Message, frozen=True, kw_only=True):
    """Urabrask could not evaluate the blueprint; an older sheet stays in force."""

    blueprint_id: Annotated[Identifier, doc("Blueprint that was to be evaluated")]
    reason: Annotated[str, doc("What went wrong")]
    issued_at: TimestampNs
