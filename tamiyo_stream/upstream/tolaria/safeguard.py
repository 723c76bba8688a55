"""The wall between the probe and the training it watches: nothing raised behind it reaches the training loop."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger("tamiyo.probe")


class Safeguard:
    """Runs pieces of the probe inside somebody else's code: swallows, counts and times them.

    Errors are logged once per kind: a broken measurement would otherwise write a line per step.
    """

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.spent_s = 0.0

    def __call__(self, kind: str, action: Callable[[], object]) -> bool:
        """Run ``action``, known as ``kind``; return whether it succeeded."""
        started = time.perf_counter()
        try:
            action()
        except Exception as error:  # the probe's boundary: training must not stop for it
            self.errors[kind] += 1
            if self.errors[kind] == 1:
                log.warning("probe: %s failed and is left out (%s: %s)", kind, type(error).__name__, error)
                log.debug("probe: %s", kind, exc_info=True)
            return False
        finally:
            self.spent_s += time.perf_counter() - started
        return True
