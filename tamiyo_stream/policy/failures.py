"""Why the network had no say: each way of failing with its own reason code (domain.md §5.2).

Whatever the failure, the run gets the same harmless answer: a PAUSE without target, which changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from tamiyo_stream.policy.heads import NetworkHeads


class Failure(StrEnum):
    """The values are the reason codes on the bus."""

    TIMEOUT_INFERENCE = "timeout_inference"
    BREAKER_OPEN = "breaker_open"
    MODEL_MISSING = "model_missing"
    INFERENCE_FAILED = "inference_failed"
    GRAPH_TOO_LARGE = "graph_too_large"
    OVERLOADED = "overloaded"
    NON_FINITE_OUTPUT = "non_finite_output"
    NO_SEED_CANDIDATES = "no_seed_candidates"
    DEGRADED_INPUTS = "degraded_inputs"


#: Heads that a decision is computed from; the attention only explains it.
_DECIDING_HEADS = (
    "policy_logits",
    "policy_params",
    "risk_logits",
    "value_estimate",
    "blending_method_logits",
    "seed_scores",
    "seed_schedule",
    "blueprint_scores",
)


def is_late(elapsed_ms: float, budget_ms: float | None) -> bool:
    """Return whether an answer ``elapsed_ms`` after the claim is past the step's deadline; None = no deadline."""
    return budget_ms is not None and elapsed_ms > budget_ms


def is_finite(heads: NetworkHeads) -> bool:
    """Return whether every number that a decision would be computed from is finite."""
    return all(bool(np.all(np.isfinite(getattr(heads, name)))) for name in _DECIDING_HEADS)


def failure_of(heads: NetworkHeads | None, reported: str, *, elapsed_ms: float, budget_ms: float | None) -> str:
    """Return why ``heads`` must not be used, "" where they may.

    What the caller ``reported`` counts first (an unknown code as ``inference_failed``); an answer past the
    deadline is discarded even where it arrived.
    """
    if reported:
        return reported if reported in set(Failure) else Failure.INFERENCE_FAILED
    if is_late(elapsed_ms, budget_ms):
        return Failure.TIMEOUT_INFERENCE
    if heads is None:
        return Failure.MODEL_MISSING
    return "" if is_finite(heads) else Failure.NON_FINITE_OUTPUT
