"""From measurements to hazards, risk, band and advice: the rules of domain.md §2.12 as facts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.enums import BlueprintTier, HandlingClass, HazardBand, ResourceProfile
from schemas.urza import BlueprintDescriptor
from tamiyo_stream.upstream.urabrask.findings import (
    MEBIBYTE,
    PROBES,
    Findings,
    added_risk,
    hazards_of,
    resource_profile,
)
from tamiyo_stream.upstream.urabrask.sheet import BANDS, band_rule, safety_sheet

HARMLESS = Findings(
    steps=16,
    gradient_ratio=1.0,
    non_finite=False,
    error_float32=1e-7,
    error_bfloat16=1e-3,
    loss_std=0.0,
    peak_bytes=MEBIBYTE,
    growth_bytes=0.0,
    batch_scale=1,
    flops=1e6,
    step_ms=1.0,
)
NAN = math.nan
#: A size that may be infinite or missing.
MEASURED = st.floats(0.0) | st.just(NAN)


@pytest.mark.parametrize(
    ("change", "found", "weight"),
    [
        ({}, {}, 0.0),
        ({"gradient_ratio": 1001.0}, {"grad_instability": "explode"}, 0.3),
        ({"gradient_ratio": 1000.0}, {}, 0.0),
        ({"gradient_ratio": 0.9e-8}, {"grad_instability": "vanish"}, 0.2),
        ({"gradient_ratio": 1e-8}, {}, 0.0),
        ({"non_finite": True}, {"nan_inf": "present"}, 0.6),
        ({"error_float32": 0.11}, {"precision": "sensitive"}, 0.2),
        ({"error_bfloat16": 0.11}, {"precision": "sensitive"}, 0.2),
        ({"error_bfloat16": 0.10}, {}, 0.0),
        ({"error_bfloat16": NAN, "error_float32": 0.11}, {"precision": "sensitive"}, 0.2),
        ({"loss_std": 0.051}, {"oscillation": "high"}, 0.2),
        ({"loss_std": 0.05}, {}, 0.0),
        ({"peak_bytes": 65 * MEBIBYTE}, {"memory_watermark": "high"}, 0.2),
        ({"peak_bytes": 64 * MEBIBYTE}, {}, 0.0),
        ({"growth_bytes": 5.0 * MEBIBYTE}, {"oom_risk": "risk"}, 0.3),
        ({"peak_bytes": 63 * MEBIBYTE, "batch_scale": 70}, {"oom_risk": "risk"}, 0.3),
    ],
)
def test_a_measurement_beyond_its_limit_is_a_hazard_with_its_weight(change, found, weight):
    findings = replace(HARMLESS, **change)
    ok = dict.fromkeys([probe.hazard for probe in PROBES], "ok")

    assert hazards_of(findings) == ok | found
    assert added_risk(findings) == pytest.approx(weight)


def test_what_was_not_measured_is_no_finding_and_not_ok_either():
    findings = replace(HARMLESS, gradient_ratio=NAN, loss_std=NAN, error_float32=NAN, error_bfloat16=NAN)

    assert hazards_of(findings) == {"nan_inf": "ok", "memory_watermark": "ok", "oom_risk": "ok"}
    assert added_risk(findings) == 0.0


@pytest.mark.parametrize(
    ("risk", "band", "handling"),
    [
        (0.0, HazardBand.LOW, HandlingClass.STANDARD),
        (0.29, HazardBand.LOW, HandlingClass.STANDARD),
        (0.30, HazardBand.MEDIUM, HandlingClass.STANDARD),
        (0.59, HazardBand.MEDIUM, HandlingClass.STANDARD),
        (0.60, HazardBand.HIGH, HandlingClass.RESTRICTED),
        (0.84, HazardBand.HIGH, HandlingClass.RESTRICTED),
        (0.85, HazardBand.CRITICAL, HandlingClass.QUARANTINE),
        (1.0, HazardBand.CRITICAL, HandlingClass.QUARANTINE),
    ],
)
def test_the_band_follows_the_risk_and_the_handling_the_band(risk, band, handling):
    rule = band_rule(risk)

    assert (rule.band, rule.handling) == (band, handling)
    assert (rule.recommendation is not None) == (band in {HazardBand.HIGH, HazardBand.CRITICAL})


def test_the_cooldown_rises_with_the_band():
    cooldowns = [rule.cooldown_ms for rule in BANDS]

    assert cooldowns == sorted(cooldowns, reverse=True) == [30_000, 10_000, 1_000, 100]


def test_quarantine_only_is_critical_whatever_was_found():
    descriptor = BlueprintDescriptor(tier=BlueprintTier.HIGH_RISK, risk=0.0, quarantine_only=True)
    sheet = safety_sheet("BP", descriptor, HARMLESS, issued_at=1)

    assert (sheet.risk_score, sheet.hazard_band) == (0.0, HazardBand.CRITICAL)
    assert sheet.handling_class is HandlingClass.QUARANTINE


@pytest.mark.parametrize("descriptor", [None, BlueprintDescriptor()])
def test_a_blueprint_without_an_estimate_starts_from_a_tenth(descriptor):
    assert safety_sheet("BP", descriptor, HARMLESS, issued_at=1).risk_score == 0.1


@given(
    risk=st.floats(0.0, 1.0),
    ratio=st.floats(allow_nan=True),
    errors=MEASURED,
    std=MEASURED,
    peak=st.integers(0, 2**40),
    broken=st.booleans(),
)
def test_a_sheet_can_always_be_issued_and_its_risk_is_a_fraction(risk, ratio, errors, std, peak, broken):
    findings = replace(
        HARMLESS,
        gradient_ratio=ratio,
        error_float32=errors,
        loss_std=std,
        peak_bytes=peak,
        non_finite=broken,
    )
    sheet = safety_sheet("BP", BlueprintDescriptor(risk=risk), findings, issued_at=1)

    assert risk <= sheet.risk_score <= 1.0
    assert sheet.hazard_band is band_rule(sheet.risk_score).band
    assert sheet.mitigation.recommendation
    assert sheet.mitigation.notes


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        ({"flops": 0.9e8}, ResourceProfile.CPU),
        ({"flops": 1e8}, ResourceProfile.MIXED),
        ({"flops": 1e9}, ResourceProfile.GPU),
        ({"flops": 1e9, "peak_bytes": 65 * MEBIBYTE}, ResourceProfile.MEMORY_HEAVY),
        ({"flops": 1e9, "peak_bytes": 64 * MEBIBYTE}, ResourceProfile.GPU),
    ],
)
def test_the_resource_profile_follows_the_measured_cost(change, profile):
    assert resource_profile(replace(HARMLESS, **change)) is profile
