"""From findings to the safety sheet: risk, band, handling and advice (``domain.md`` §2.12). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.enums import HandlingClass, HazardBand, Provenance
from schemas.urabrask import BlueprintSafetySheet, Mitigation
from schemas.urza import BlueprintDescriptor
from tamiyo_stream.upstream.urabrask.findings import (
    Findings,
    added_risk,
    hazards_of,
    notes_of,
    resource_profile,
)

#: Risk of a blueprint of which no one has estimated it.
UNKNOWN_RISK = 0.1
_DOWNGRADE = "favour an optimizer downgrade, avoid aggressive grafting"


@dataclass(frozen=True, slots=True)
class BandRule:
    """What follows from a band.

    ``cooldown_ms`` between aggressive updates rises tenfold with the band, up to the 30 s for which Kasmina
    embargoes a seed that failed.
    """

    band: HazardBand
    from_risk: float
    handling: HandlingClass
    strategy: str
    cooldown_ms: float
    recommendation: str | None = None


BANDS: tuple[BandRule, ...] = (
    BandRule(HazardBand.CRITICAL, 0.85, HandlingClass.QUARANTINE, "QUARANTINE", 30_000, _DOWNGRADE),
    BandRule(HazardBand.HIGH, 0.60, HandlingClass.RESTRICTED, "OPTIMIZER_DOWNGRADE", 10_000, _DOWNGRADE),
    BandRule(HazardBand.MEDIUM, 0.30, HandlingClass.STANDARD, "DRIFT_CONTROLLED", 1_000),
    BandRule(HazardBand.LOW, 0.0, HandlingClass.STANDARD, "STANDARD", 100),
)


def safety_sheet(
    blueprint_id: str, descriptor: BlueprintDescriptor | None, findings: Findings, *, issued_at: int
) -> BlueprintSafetySheet:
    """Return the sheet: the descriptor's risk plus the weights of what was found, at most 1.

    A blueprint for quarantine only is CRITICAL whatever was found.
    """
    known = descriptor.risk if descriptor is not None else None
    risk = min(1.0, (UNKNOWN_RISK if known is None else known) + added_risk(findings))
    rule = band_rule(risk, quarantine_only=descriptor is not None and descriptor.quarantine_only)
    return BlueprintSafetySheet(
        blueprint_id=blueprint_id,
        risk_score=risk,
        hazard_band=rule.band,
        handling_class=rule.handling,
        resource_profile=resource_profile(findings),
        recommendation=rule.recommendation,
        issued_at=issued_at,
        provenance=Provenance.URABRASK,
        mitigation=Mitigation(
            recommendation=rule.strategy, cooldown_ms=rule.cooldown_ms, notes=notes_of(findings)
        ),
        hazards=dict(hazards_of(findings)),
    )


def band_rule(risk: float, *, quarantine_only: bool = False) -> BandRule:
    """Return what follows from ``risk``, 0..1."""
    return BANDS[0] if quarantine_only else next(rule for rule in BANDS if risk >= rule.from_risk)
