"""Choosing among the legal: action, seed, kernel, blending, bounded parameters (design §9). Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.enums import BLENDING_METHODS, DEFAULT_BLENDING_METHOD
from schemas.kasmina import SeedState
from tamiyo_stream.policy.actions import ACTION_TABLE, Action, Slot
from tamiyo_stream.policy.heads import FloatArray, NetworkHeads
from tamiyo_stream.policy.legality import Candidates, legal_slots

#: Position of the learning-rate change in a slot's parameters; the others are named in the checkpoint's manifest.
LR_CHANGE_PARAM = 0


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


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen slot and what it acts on: positions in the graph's order, None without such a target."""

    slot: Slot
    param: float
    seed: int | None = None
    kernel: int | None = None
    blending: Blending | None = None


def select(heads: NetworkHeads, candidates: Candidates, seeds: Sequence[SeedState]) -> Selection:
    """Return the best legal slot with its targets; ties go to the lower index."""
    masked = np.where(legal_slots(candidates), heads.policy_logits, -np.inf)
    slot = ACTION_TABLE[int(np.argmax(masked))]
    param = float(heads.policy_params[slot.index, LR_CHANGE_PARAM])
    if slot.action in {Action.GRAFT, Action.GERMINATE}:
        seed = _best(heads.seed_scores, candidates.germinable)
        kernel = slot.kernel if slot.kernel is not None else _best(heads.blueprint_scores, candidates.kernels)
        return Selection(slot, param, seed, kernel, choose_blending(heads, seed, seeds[seed]))
    if slot.action is Action.CULL:
        # The score says how much a seed is wanted: cull the least wanted.
        return Selection(slot, param, _best(-heads.seed_scores, candidates.cullable))
    return Selection(slot, param)


def choose_blending(heads: NetworkHeads, position: int, seed: SeedState) -> Blending:
    """Return the preferred method among those the seed allows, and its schedule mapped to [0, 1] and ordered."""
    allowed = seed.allowed_blending_methods
    usable = [i for i, name in enumerate(BLENDING_METHODS) if allowed is None or name in allowed]
    method = BLENDING_METHODS[_best(heads.blending_method_logits, usable)] if usable else DEFAULT_BLENDING_METHOD
    start, end = sorted(float(np.clip((value + 1) / 2, 0.0, 1.0)) for value in heads.seed_schedule[position])
    return Blending(method, start, end)


def expected_severity(risk_logits: FloatArray) -> float:
    """Return Σ pᵢ·i/4 over the five risk classes: 0 = surely harmless, 1 = surely critical (not a confidence)."""
    return float(softmax(risk_logits) @ np.arange(len(risk_logits)) / (len(risk_logits) - 1))


def softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities of ``logits``."""
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum(), dtype=np.float32)


def _best(scores: FloatArray, positions: Sequence[int]) -> int:
    return max(positions, key=lambda position: (float(scores[position]), -position))
