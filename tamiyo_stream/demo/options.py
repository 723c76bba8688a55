"""What the demo may be asked for. Loads no torch: the command line reads it before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Service(StrEnum):
    """Services that the demo can do without; what they would send is missing then, and counted as missing."""

    KASMINA = "kasmina"
    URABRASK = "urabrask"
    URZA = "urza"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asked for.

    ``json_file`` ``-`` is stdout. ``swap_at``: step after which another policy is published; None = never.
    """

    steps: int
    headless: bool
    json_file: Path | None
    seed: int
    without: frozenset[Service] = frozenset()
    swap_at: int | None = None
