"""Urabrask, the safety evaluator: Blueprint Safety Data Sheets (``domain.md`` §2.12)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import HandlingClass, HazardBand, Provenance, ResourceProfile
from schemas.record import Fraction, Identifier, Message, Record, TimestampNs, doc


class Mitigation(Record, frozen=True, kw_only=True):
    """How to use the blueprint safely."""

    recommendation: str | None = None
    cooldown_ms: Annotated[float | None, doc("Wait between aggressive updates", "ms")] = None
    notes: str | None = None


class BlueprintSafetySheet(Message, frozen=True, kw_only=True):
    """The safety sheet (BSDS) of one blueprint. Consumers gate on the band first, then on the score."""

    blueprint_id: Identifier
    risk_score: Annotated[Fraction | None, doc("Overrides the descriptor's risk", "1")] = None
    hazard_band: HazardBand = HazardBand.UNSPECIFIED
    handling_class: HandlingClass = HandlingClass.UNSPECIFIED
    resource_profile: ResourceProfile = ResourceProfile.UNSPECIFIED
    recommendation: str | None = None
    issued_at: TimestampNs
    provenance: Provenance = Provenance.UNSPECIFIED
    mitigation: Mitigation | None = None
    hazards: Annotated[
        dict[str, str | float | bool | None],
        doc("Hazard name -> finding (crucible v1: grad_instability, nan_inf, precision, oscillation, …)"),
    ] = {}


class BlueprintSafetyFailed(Message, frozen=True, kw_only=True):
    """Urabrask could not evaluate the blueprint; an older sheet stays in force."""

    blueprint_id: Identifier
    reason: str
    issued_at: TimestampNs
