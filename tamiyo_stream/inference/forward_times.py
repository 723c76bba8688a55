"""How long forwards lately took, and how long the next will: a straight line through the newest (size, time)."""

from __future__ import annotations

import math
from collections import deque

#: Forwards that are looked back on.
WINDOW = 256


class ForwardTimes:
    """Times of the newest forwards by size; a size is nodes plus edges."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._base_ms = self._slope_ms = 0.0

    def record(self, size: int, forward_ms: float) -> None:
        """Take a forward over ``size`` nodes and edges into account."""
        self._recent.append((size, forward_ms))
        self._fit()

    def percentile(self, share: float) -> float:
        """Return the nearest-rank percentile in milliseconds, 0 where there are no times."""
        ordered = sorted(forward_ms for _, forward_ms in self._recent)
        return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else 0.0

    def expected_ms(self, size: int) -> float:
        """Return the milliseconds that a forward over ``size`` nodes and edges will take, 0 before the first."""
        return self._base_ms + self._slope_ms * size

    def _fit(self) -> None:
        """Fit base and slope by least squares; more work is never expected to take less time."""
        count = len(self._recent)
        mean_size = sum(size for size, _ in self._recent) / count
        mean_ms = sum(forward_ms for _, forward_ms in self._recent) / count
        spread = sum((size - mean_size) ** 2 for size, _ in self._recent)
        joint = sum((size - mean_size) * (forward_ms - mean_ms) for size, forward_ms in self._recent)
        slope = joint / spread if spread > 0 else 0.0
        # The line must start at or above zero, too: a forward has a fixed part.
        self._slope_ms = min(max(slope, 0.0), mean_ms / mean_size if mean_size else 0.0)
        self._base_ms = mean_ms - self._slope_ms * mean_size
