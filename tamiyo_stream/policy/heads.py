"""What the policy needs of the network's answer: a Protocol, for the policy imports no network (design §3)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class NetworkHeads(Protocol):
    """One graph's heads; S seeds, K kernels and L layers in the graph's order (design §7)."""

    @property
    def policy_logits(self) -> FloatArray:
        """[32]."""

    @property
    def policy_params(self) -> FloatArray:
        """[32, 4], in [-1, 1]."""

    @property
    def risk_logits(self) -> FloatArray:
        """[5]."""

    @property
    def value_estimate(self) -> float:
        """Expected uplift."""

    @property
    def blending_method_logits(self) -> FloatArray:
        """[4]."""

    @property
    def seed_scores(self) -> FloatArray:
        """[S]."""

    @property
    def seed_schedule(self) -> FloatArray:
        """[S, 2], in [-1, 1]."""

    @property
    def blueprint_scores(self) -> FloatArray:
        """[K]."""

    @property
    def layer_attention(self) -> FloatArray:
        """[L], sums to 1."""

    @property
    def seed_attention(self) -> FloatArray:
        """[S], sums to 1; zeros where no seed is attended to."""

    @property
    def policy_digest(self) -> str:
        """SHA-256 of the network's weights, hex."""
