"""The risk engine's thresholds, with the documented defaults (domain.md §5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: float, unit: str) -> Any:
    return field(default=default, metadata={"unit": unit})


@dataclass(frozen=True, slots=True)
class RiskThresholds:
    """Where each rule of the risk table begins to fire; the unit is each field's metadata.

    Raises:
        ValueError: a threshold that is not finite, or a milder one beyond its severe one.
    """

    risk_score_critical: float = _limit(0.98, "1")
    risk_score_elevated: float = _limit(0.85, "1")
    blueprint_risk_quarantine: float = _limit(0.8, "1")
    blueprint_risk_elevated: float = _limit(0.5, "1")
    loss_spike: float = _limit(0.15, "loss")
    loss_warning: float = _limit(0.075, "loss")
    hook_latency_ms: float = _limit(50.0, "ms")
    step_latency_ms: float = _limit(120.0, "ms")
    kasmina_apply_ms: float = _limit(30.0, "ms")
    kasmina_finalize_ms: float = _limit(30.0, "ms")
    isolation_violations: float = _limit(0.0, "count")
    loss_volatility: float = _limit(0.1125, "loss")
    gradient_variance: float = _limit(1.0, "grad²")
    gradient_conflict_rate: float = _limit(0.5, "1")
    optimizer_lr: float = _limit(0.0, "lr")
    gpu_util_percent: float = _limit(95.0, "%")
    gpu_free_gb: float = _limit(0.2, "GB")
    cpu_util_percent: float = _limit(95.0, "%")
    coverage_warn: float = _limit(0.30, "1")
    coverage_critical: float = _limit(0.10, "1")
    state_age_ms: float = _limit(60_000.0, "ms")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not math.isfinite(value):
                raise ValueError(f"{entry.name} is {value}; give a finite threshold")
        for milder, severe in _ORDERED:
            if getattr(self, milder) > getattr(self, severe):
                raise ValueError(
                    f"{milder} {getattr(self, milder)} is above {severe} {getattr(self, severe)}; "
                    f"lower {milder} or raise {severe}"
                )


#: Pairs that must not cross: the first at most the second.
_ORDERED = (
    ("risk_score_elevated", "risk_score_critical"),
    ("blueprint_risk_elevated", "blueprint_risk_quarantine"),
    ("loss_warning", "loss_spike"),
    ("coverage_critical", "coverage_warn"),
)
