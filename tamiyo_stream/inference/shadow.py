"""What a new policy would have decided beside the one in service: agreement, drift, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from tamiyo_stream.graph.structures import FloatArray
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Both policies on the same graphs.

    Attributes:
        graphs: compared. agreement: share on which both rate the same action highest, before legality; None where
            no graph was compared.
        value_drift: mean absolute difference of the value estimates. risk_drift: mean absolute difference of the
            expected severities, 0..1.
        latency_ratio: median time of a batch, new over old. The new one's batches ran beside the old one's work.
        non_finite: graphs on which only the new policy's answer was no number.
    """

    graphs: int = 0
    agreement: float | None = None
    value_drift: float = 0.0
    risk_drift: float = 0.0
    latency_ratio: float = 1.0
    non_finite: int = 0


class Comparison:
    """Collects pairs of answers."""

    def __init__(self) -> None:
        self._same: list[bool] = []
        self._value: list[float] = []
        self._risk: list[float] = []
        self._ratios: list[float] = []
        self._non_finite = 0

    def __len__(self) -> int:
        """Graphs seen."""
        return len(self._same) + self._non_finite

    def add_batch(
        self,
        old: Sequence[NetworkOutput | NonFiniteOutput],
        new: Sequence[NetworkOutput | NonFiniteOutput],
        *,
        old_ms: float,
        new_ms: float,
    ) -> None:
        """Compare two evaluations of one batch, graph by graph."""
        for theirs, ours in zip(old, new, strict=True):
            if isinstance(theirs, NonFiniteOutput):
                continue  # the graph is to blame, or the old policy: nothing to compare with
            if isinstance(ours, NonFiniteOutput):
                self._non_finite += 1
                continue
            self._same.append(int(theirs.policy_logits.argmax()) == int(ours.policy_logits.argmax()))
            self._value.append(abs(theirs.value_estimate - ours.value_estimate))
            self._risk.append(abs(_severity(theirs.risk_logits) - _severity(ours.risk_logits)))
        if old_ms > 0:
            self._ratios.append(new_ms / old_ms)

    def report(self) -> ShadowReport:
        """Return what was found so far."""
        if not self._same:
            return ShadowReport(non_finite=self._non_finite)
        return ShadowReport(
            graphs=len(self._same),
            agreement=fmean(self._same),
            value_drift=fmean(self._value),
            risk_drift=fmean(self._risk),
            latency_ratio=median(self._ratios) if self._ratios else 1.0,
            non_finite=self._non_finite,
        )


def _severity(logits: FloatArray) -> float:
    """Return the expected severity Σ pᵢ·i/4 of the risk classes (design §9)."""
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return float((weights / weights.sum()) @ np.linspace(0.0, 1.0, len(logits)))
