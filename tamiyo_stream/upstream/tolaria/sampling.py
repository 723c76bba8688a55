"""When to take the dear measurements: often enough to be fresh, seldom enough to stay within the budget.

A sampled step (hooks, weight copies, activation statistics) costs a few per cent more where layers are wide, and
several times the step where they are many and narrow. The interval follows from what the loop itself shows: by how
much sampled steps take longer than the others.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

#: Shortest interval, in steps, and the longest that a slow model or a noisy clock can ask for.
SHORTEST, LONGEST = 10, 500
#: Share of the training time that sampling may take; what the probe does every step comes on top.
BUDGET = 0.02
#: Steps remembered. The median of plain steps and the fastest of sampled ones shrug off evaluations in between.
PLAIN_KEPT, SAMPLED_KEPT = 31, 3


class SamplingInterval:
    """Chooses which steps are sampled: every ``fixed``-th, or by :data:`BUDGET` where it is None."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._plain: deque[float] = deque(maxlen=PLAIN_KEPT)
        self._sampled: deque[float] = deque(maxlen=SAMPLED_KEPT)
        self._since = 0

    @property
    def steps(self) -> int:
        """Steps from one sampled step to the next, by what is known now."""
        if self._fixed is not None:
            return self._fixed
        if not self._plain or not self._sampled:
            return SHORTEST
        usual = statistics.median(self._plain)
        excess = min(self._sampled) - usual
        return SHORTEST if usual <= 0 else min(max(math.ceil(excess / (BUDGET * usual)), SHORTEST), LONGEST)

    def next_is_sampled(self, step_s: float | None, sampled: bool) -> bool:
        """Return whether the next step is sampled. This one took ``step_s`` (None: not known)."""
        if step_s is not None:
            (self._sampled if sampled else self._plain).append(step_s)
        self._since = 0 if sampled else self._since + 1
        return self._since + 1 >= self.steps
