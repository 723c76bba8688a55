"""Two ways of doing the same, timed in turns: a machine that slows down slows both, so their ratio holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster: median over the pairs, and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    pairs: int

    def figures(self, name: str) -> dict[str, float]:
        """Return the fields as figures called ``name``."""
        return {
            f"{name}.median": self.median,
            f"{name}.low": self.low,
            f"{name}.high": self.high,
            f"{name}.pairs": self.pairs,
        }


def time_pairs(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[Times, Times]:
    """Return [pairs] milliseconds of ``first`` and of ``second``, in alternating order."""
    times = np.empty((pairs, 2))
    for turn in range(pairs):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[turn, which] = time_once(second if which else first)
    return times[:, 0], times[:, 1]


def time_once(work: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def ratio_of(slower: Times, faster: Times) -> Ratio:
    """Return the pairwise ratio ``slower / faster``."""
    ratios = slower / faster
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (_RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def percentiles(name: str, times: Sequence[float] | Times) -> dict[str, float]:
    """Return the median and the 95th percentile of milliseconds as figures called ``name``."""
    p50, p95 = np.percentile(np.asarray(times), [50, 95])
    return {f"{name}.p50_ms": float(p50), f"{name}.p95_ms": float(p95)}
