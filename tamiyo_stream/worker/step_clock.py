"""The clock of a step: when its packet was claimed, and how long the answer took; a recording can stand in for it.

Everything in a command that depends on time follows from these two figures, and both can be read back from the
command: whoever replays a run decides it at the same moments (``tamiyo_stream.replay``).
"""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_US = 1_000


class StepClock(Protocol):
    """Moments of a step, in whole microseconds, which commands state exactly."""

    def elapsed_us(self, claimed_at: float) -> int:
        """Return the microseconds since ``claimed_at`` (``time.monotonic()`` seconds)."""

    def claimed_ns(self, claimed_at: float) -> int:
        """Return the Unix time, ns, of ``claimed_at``."""


class LiveClock:
    """The machine's clocks."""

    def elapsed_us(self, claimed_at: float) -> int:
        """Return the microseconds since ``claimed_at`` (``time.monotonic()`` seconds)."""
        return round((time.monotonic() - claimed_at) * 1e6)

    def claimed_ns(self, claimed_at: float) -> int:
        """Return the Unix time, ns, of ``claimed_at``."""
        return time.time_ns() - self.elapsed_us(claimed_at) * NS_PER_US
