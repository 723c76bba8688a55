"""Gives freed memory back to the operating system.

An engine's weights are some hundred medium-sized tensors, freed among others that live on: glibc keeps such holes
to itself, and every swap of a policy would add tens of megabytes to the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast


def _trimmer() -> Callable[[int], int] | None:
    try:
        return cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (OSError, AttributeError, TypeError):  # another C library
        return None


_TRIM = _trimmer()


def release_freed_memory() -> None:
    """Return unused pages of the heap; takes milliseconds, other threads go on. No effect without glibc."""
    if _TRIM is not None:
        _TRIM(0)
