"""One spelling for what Tolaria and Kasmina report: names with their source's prefix, one unit per dimension."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

#: Unit as reported, lower case -> unit as sent on, and the factor between them.
UNITS: dict[str, tuple[str, float]] = {
    "s": ("ms", 1e3),
    "sec": ("ms", 1e3),
    "seconds": ("ms", 1e3),
    "milliseconds": ("ms", 1.0),
    "us": ("ms", 1e-3),
    "µs": ("ms", 1e-3),
    "microseconds": ("ms", 1e-3),
    "ns": ("ms", 1e-6),
    "nanoseconds": ("ms", 1e-6),
    "%": ("ratio", 1e-2),
    "percent": ("ratio", 1e-2),
    "fraction_0_1": ("ratio", 1.0),
    "by": ("bytes", 1.0),
    "byte": ("bytes", 1.0),
    "kib": ("bytes", 1024.0),
    "mib": ("bytes", 1024.0**2),
    "gib": ("bytes", 1024.0**3),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "flag": ("bool", 1.0),
    "boolean": ("bool", 1.0),
    "1": ("", 1.0),
}
#: End of a name that says its unit -> what stands there once the unit is another.
SUFFIXES: dict[str, str] = {
    "_seconds": "ms",
    "_s": "ms",
    "_us": "ms",
    "_ns": "ms",
    "_percent": "ratio",
    "_pct": "ratio",
    "_kb": "bytes",
    "_mb": "bytes",
    "_gb": "bytes",
}
#: Distinct names remembered; beyond them a name is worked out again each time.
REMEMBERED = 4096
#: Longest name on the wire.
MAX_NAME = 200
UNNAMED = "unnamed"
_SEPARATORS = re.compile(r"[/:\s]+")
_OTHERS = re.compile(r"[^a-z0-9_.]+")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a reported figure is sent on: its name, its unit, and what its value is multiplied by."""

    name: str
    unit: str
    factor: float


@lru_cache(maxsize=REMEMBERED)
def spell(source: str, name: str, unit: str) -> Spelling:
    """Return the spelling of metric ``name`` in ``unit`` as ``source`` reports it."""
    known = UNITS.get(unit.strip().lower())
    sent, factor = known if known is not None else (unit.strip(), 1.0)
    text = _OTHERS.sub("_", _SEPARATORS.sub(".", name.strip().lower())).strip(".")
    if factor != 1.0:
        text = _renamed(text, sent)
    full = text if text.startswith(f"{source}.") else f"{source}.{text or UNNAMED}"
    return Spelling(full[:MAX_NAME].rstrip("."), sent, factor)


def _renamed(name: str, unit: str) -> str:
    for suffix, replacement in SUFFIXES.items():
        if name.endswith(suffix) and replacement == unit:
            return f"{name.removesuffix(suffix)}_{unit}"
    return name
