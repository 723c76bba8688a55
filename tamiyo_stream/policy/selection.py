"""Choosing among the legal: action, seed, kernel, blending (design §9). Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.kasmina import SeedState
from tamiyo_stream.policy.actions import ACTION_TABLE, CONTROL_SLOTS, GRAFTING, Action, Slot
from tamiyo_stream.policy.blending import Blending, choose_blending, usable_methods
from tamiyo_stream.policy.heads import FloatArray, NetworkHeads
from tamiyo_stream.policy.legality import Candidates, legal_slots, slot_refusal
from tamiyo_stream.policy.parameters import LR_CHANGE_PARAM


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen slot and what it acts on: positions in the graph's order, None without such a target.

    ``params`` are the slot's four outputs in [-1, 1], ``seed_score`` is that of the seed. ``downgraded``: not the
    network's choice but what the risk engine left of it.
    """

    slot: Slot
    params: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    seed: int | None = None
    kernel: int | None = None
    blending: Blending | None = None
    seed_score: float | None = None
    downgraded: bool = False

    @property
    def action(self) -> Action:
        """What the slot does."""
        return self.slot.action

    @property
    def param(self) -> float:
        """The learning-rate output, in [-1, 1]."""
        return self.params[LR_CHANGE_PARAM]

    @property
    def idle(self) -> bool:
        """Whether it changes nothing in the run: a hold, or a pause without target."""
        return self.action is Action.HOLD or (self.action is Action.PAUSE and self.seed is None)


@dataclass(frozen=True, slots=True)
class Preference:
    """What the network would have chosen without the mask, and why it may not; "" where it may."""

    slot: Slot
    refusal: str


def preference(heads: NetworkHeads, candidates: Candidates) -> Preference:
    """Return the network's first preference over all 32 slots; ties go to the lower index."""
    slot = ACTION_TABLE[int(np.argmax(heads.policy_logits))]
    return Preference(slot, slot_refusal(slot, candidates))


def select(
    heads: NetworkHeads,
    candidates: Candidates,
    seeds: Sequence[SeedState],
    host_blending_methods: Sequence[str] | None = None,
) -> Selection:
    """Return the best legal slot with its targets; ties go to the lower index."""
    masked = np.where(legal_slots(candidates), heads.policy_logits, -np.inf)
    slot = ACTION_TABLE[int(np.argmax(masked))]
    params = tuple(map(float, heads.policy_params[slot.index]))
    if slot.action in GRAFTING:
        seed = _best(heads.seed_scores, candidates.germinable)
        kernel = slot.kernel if slot.kernel is not None else _best(heads.blueprint_scores, candidates.kernels)
        usable = usable_methods(seeds[seed].allowed_blending_methods, host_blending_methods)
        blending = choose_blending(heads.blending_method_logits, heads.seed_schedule[seed], usable)
        return Selection(slot, params, seed, kernel, blending, float(heads.seed_scores[seed]))
    target = _target(slot.action, heads.seed_scores, candidates)
    score = float(heads.seed_scores[target]) if target is not None else None
    return Selection(slot, params, target, seed_score=score)


def downgraded_to_optimizer(heads: NetworkHeads, *, has_optimizer: bool) -> Selection:
    """Return what is left of a graft that was too risky: a lower learning rate.

    A pause where there is no optimizer, or the network would not lower the rate: a downgrade never raises it, and
    a command that changes nothing is not worth sending.
    """
    slot = CONTROL_SLOTS[Action.OPTIMIZER]
    params = tuple(map(float, heads.policy_params[slot.index]))
    if not has_optimizer or params[LR_CHANGE_PARAM] >= 0.0:
        return downgraded_to_pause()
    return Selection(slot, params, downgraded=True)


def downgraded_to_pause() -> Selection:
    """Return the pause without target, which changes nothing in the run."""
    return Selection(CONTROL_SLOTS[Action.PAUSE], downgraded=True)


def expected_severity(risk_logits: FloatArray) -> float:
    """Return Σ pᵢ·i/4 over the five risk classes: 0 = surely harmless, 1 = surely critical (not a confidence)."""
    return float(softmax(risk_logits) @ np.arange(len(risk_logits)) / (len(risk_logits) - 1))


def softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities of ``logits``."""
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum(), dtype=np.float32)


def _target(action: Action, scores: FloatArray, candidates: Candidates) -> int | None:
    """Return the seed that ``action`` is about. The score says how much a seed is wanted."""
    if action is Action.CULL:
        return _best(-scores, candidates.cullable)
    if action is Action.PAUSE and candidates.pausable:
        return _best(-scores, candidates.pausable)
    return _best(scores, candidates.resumable) if action is Action.RESUME else None


def _best(scores: FloatArray, positions: Sequence[int]) -> int:
    return max(positions, key=lambda position: (float(scores[position]), -position))
