"""Waiting for what a background thread does, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], object], description: str, timeout_s: float = 20.0) -> None:
    """Return as soon as ``predicate`` holds; fail with ``description`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"still waiting until {description}"
        time.sleep(0.005)
