"""Moving mean and variance of vectors of measurements, α = 0.1; what is not finite never counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ALPHA = 0.1


class Ewma:
    """Exponentially weighted mean and variance per element. NaN until the first finite sample."""

    def __init__(self, size: int) -> None:
        self.mean: FloatArray = np.full(size, np.nan)
        self.variance: FloatArray = np.full(size, np.nan)
        self.count = np.zeros(size, dtype=np.int64)

    def inherit(self, previous: Ewma, kept: npt.NDArray[np.int64]) -> None:
        """Take over statistics: element *i* goes on from ``previous``'s element ``kept[i]``, -1 = from nothing."""
        known = kept >= 0
        for name in ("mean", "variance", "count"):
            getattr(self, name)[known] = getattr(previous, name)[kept[known]]

    def update(self, samples: FloatArray) -> None:
        """Take in one sample per element; elements whose sample is not finite keep their statistics."""
        usable = np.isfinite(samples)
        first = usable & (self.count == 0)
        self.mean[first], self.variance[first] = samples[first], 0.0
        later = usable & ~first
        step = ALPHA * (samples[later] - self.mean[later])
        self.variance[later] = (1.0 - ALPHA) * (self.variance[later] + step * (samples[later] - self.mean[later]))
        self.mean[later] += step
        self.count += usable

    def relative_spread(self) -> FloatArray:
        """Return standard deviation / mean; NaN before the second sample or around a mean of zero."""
        spread = np.full(len(self.mean), np.nan)
        known = (self.count > 1) & (self.mean > 0)
        spread[known] = np.sqrt(self.variance[known]) / self.mean[known]
        return spread
