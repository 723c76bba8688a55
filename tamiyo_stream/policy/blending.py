"""How a grafted seed is blended in: the method and its schedule, and the tensor-mixing mode (domain.md §4.3).

The *method* is the family of the alpha schedule, chosen by the network among what the seed allows. The *mode* says
how tensors mix; it is an operator's choice and travels in annotations, off by default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from schemas.enums import BLENDING_METHODS, DEFAULT_BLENDING_METHOD

#: Schedules are fractions of Kasmina's blending window.
SCHEDULE_UNITS = "fraction_0_1"


@dataclass(frozen=True, slots=True)
class Blending:
    """How a grafted seed is blended in. ``start`` and ``end`` are fractions 0..1 of the window, ordered."""

    method: str
    start: float
    end: float

    @property
    def index(self) -> int:
        """0-based wire index."""
        return BLENDING_METHODS.index(self.method)


def usable_methods(seed_allows: Sequence[str] | None, host_allows: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return the wire indices a seed may be given: its own list, else the host's, else every method.

    An explicit empty list allows none (domain.md §4.9).
    """
    allowed = seed_allows if seed_allows is not None else host_allows
    return tuple(i for i, name in enumerate(BLENDING_METHODS) if allowed is None or name in allowed)


def choose_blending(
    method_logits: npt.NDArray[np.float32], schedule: npt.NDArray[np.float32], usable: Sequence[int]
) -> Blending:
    """Return the preferred method among ``usable`` and the schedule mapped to [0, 1] and ordered.

    Args:
        method_logits: [4].
        schedule: [2], in [-1, 1].
        usable: wire indices; without any, the default method.
    """
    best = max(usable, key=lambda i: (float(method_logits[i]), -i), default=None)
    method = BLENDING_METHODS[best] if best is not None else DEFAULT_BLENDING_METHOD
    start, end = sorted(float(np.clip((value + 1) / 2, 0.0, 1.0)) for value in schedule)
    return Blending(method, start, end)


class BlendMode(StrEnum):
    """How the seed's and the host's tensors mix."""

    CONVEX = "CONVEX"
    RESIDUAL = "RESIDUAL"
    CHANNEL = "CHANNEL"
    CONFIDENCE = "CONFIDENCE"


@dataclass(frozen=True, slots=True)
class BlendModeProfile:
    """The blend mode an operator asks for; not announced unless ``enabled``.

    ``gate_k``/``gate_tau`` shape CONFIDENCE's gate (defaults: Kasmina's), ``alpha_lo``/``alpha_hi`` bound it,
    0..1. ``channels`` is the length of CHANNEL's vector, at most 64; every element starts at 0, as alpha does.

    Raises:
        ValueError: a value out of its range.
    """

    enabled: bool = False
    mode: BlendMode = BlendMode.CONVEX
    gate_k: float = 4.0
    gate_tau: float = 0.2
    alpha_lo: float = 0.0
    alpha_hi: float = 1.0
    channels: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha_lo <= self.alpha_hi <= 1.0:
            raise ValueError(f"alpha_lo {self.alpha_lo} to alpha_hi {self.alpha_hi} is no range within 0 to 1")
        if not (0.0 <= self.gate_k < np.inf and 0.0 <= self.gate_tau < np.inf):
            raise ValueError(f"gate_k {self.gate_k} and gate_tau {self.gate_tau} must be finite and not negative")
        if not 1 <= self.channels <= 64:
            raise ValueError(f"channels is {self.channels}; give 1 to 64")


def blend_mode_annotations(profile: BlendModeProfile) -> dict[str, str]:
    """Return the annotations that Kasmina reads on GERMINATE; none unless the profile is enabled."""
    if not profile.enabled:
        return {}
    source = "heuristic" if profile.mode is BlendMode.CONVEX else "override"
    return {"blend_mode": profile.mode.value, "blend_mode_source": source, **_mode_parameters(profile)}


def _mode_parameters(profile: BlendModeProfile) -> dict[str, str]:
    if profile.mode is BlendMode.CONFIDENCE:
        names = ("gate_k", "gate_tau", "alpha_lo", "alpha_hi")
        return {name: f"{getattr(profile, name):.4f}" for name in names}
    if profile.mode is BlendMode.CHANNEL:
        return {
            "alpha_vec": json.dumps([0.0] * profile.channels, separators=(",", ":")),
            "alpha_vec_len": str(profile.channels),
        }
    return {}
