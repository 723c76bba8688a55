"""How the tensors of seed and host mix (``domain.md`` §4.3), and what gradient crosses between them.

While a kernel *trains*, the host computes and learns exactly what it would without it: the kernel sees a detached
copy of the host's output, the output's value stays the host's, and the gradient of the run's loss reaches the
kernel past it (straight-through). As the loss cannot react to what the kernel says then, its steepest descent
would never end; a pull towards zero bounds it: its fixed point is a change of :data:`TRUST` times the host's norm.

While a kernel *blends*, and ever after, gradients are those of what is computed, through the kernel's input as
well. The prototype detached the host; with alpha at 1 everything before the site would then stop learning. What
is still detached is the confidence gate. A gradient that is not finite never leaves a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

#: Relative size of the change that a kernel in training is pulled to; small enough for a first-order argument.
TRUST = 0.1
_TINY = 1e-12


class BlendMode(StrEnum):
    """How seed and host mix."""

    CONVEX = "CONVEX"
    RESIDUAL = "RESIDUAL"
    CHANNEL = "CHANNEL"
    CONFIDENCE = "CONFIDENCE"


class BlendInvalid(ValueError):
    """A blend configuration that cannot be applied to the site."""


@dataclass(frozen=True, slots=True)
class BlendConfig:
    """Mode and its settings, as a GERMINATE command's annotations name them.

    Attributes:
        mode: how tensors mix.
        gate_k: steepness of the confidence gate, ≥ 0.
        gate_tau: margin at which the gate is half open, ≥ 0.
        alpha_lo: lower bound of the gated alpha, 0..1.
        alpha_hi: upper bound, 0..1.
        alpha_vec: alpha per channel at full blend, each 0..1; empty in CHANNEL mode means convex.

    Raises:
        BlendInvalid: naming the setting that is out of range.
    """

    mode: BlendMode = BlendMode.CONVEX
    gate_k: float = 4.0
    gate_tau: float = 0.2
    alpha_lo: float = 0.0
    alpha_hi: float = 1.0
    alpha_vec: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0.0 <= value < math.inf for value in (self.gate_k, self.gate_tau)):
            raise BlendInvalid(f"gate_k, gate_tau are {self.gate_k}, {self.gate_tau}; give both 0 or more, finite")
        if not 0.0 <= self.alpha_lo <= self.alpha_hi <= 1.0:
            raise BlendInvalid(
                f"alpha_lo, alpha_hi are {self.alpha_lo}, {self.alpha_hi}; give ordered numbers within 0..1"
            )
        if not all(0.0 <= alpha <= 1.0 for alpha in self.alpha_vec):
            raise BlendInvalid("alpha_vec holds a value outside 0..1; clamp it")

    def require_width(self, width: int) -> None:
        """Check that a vector of alphas has one per channel of the site.

        Raises:
            BlendInvalid: naming both lengths.
        """
        if self.mode is BlendMode.CHANNEL and self.alpha_vec and len(self.alpha_vec) != width:
            raise BlendInvalid(f"alpha_vec has {len(self.alpha_vec)} values, the site {width} channels")


def mixed(config: BlendConfig, alpha: float, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return ``host`` and ``seed`` (both [..., width]) blended by ``alpha``."""
    return _MIXERS[config.mode](config, alpha, host, seed)


def change_of(config: BlendConfig, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return what the seed would change of the host's output at alpha 1: [..., width]."""
    return seed if config.mode is BlendMode.RESIDUAL else seed - host.detach()


def kernel_input(host: torch.Tensor, *, isolated: bool) -> torch.Tensor:
    """Return the copy of the host's output that a kernel may see, and even work on in place.

    ``isolated``: no gradient comes back from it; else none that is not finite.
    """
    if isolated or not host.requires_grad:
        return host.detach().clone()
    copy: torch.Tensor = _FiniteGradient.apply(host)  # type: ignore[no-untyped-call]
    return copy


def straight_through(host: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return ``host``, bit by bit, with the gradient of the loss going to ``change`` too."""
    passed: torch.Tensor = _StraightThrough.apply(host, change)  # type: ignore[no-untyped-call]
    return passed


def _convex(_: BlendConfig, alpha: float, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    return alpha * seed + (1.0 - alpha) * host


def _residual(_: BlendConfig, alpha: float, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    return host + alpha * seed


def _channel(config: BlendConfig, alpha: float, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    if not config.alpha_vec:
        return _convex(config, alpha, host, seed)
    share = alpha * torch.tensor(config.alpha_vec, dtype=host.dtype, device=host.device)
    return share * seed + (1.0 - share) * host


def _confidence(config: BlendConfig, alpha: float, host: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Blend by how far the seed's largest channel is ahead of its second (the margin), position by position."""
    largest = seed.detach().topk(min(2, seed.shape[-1]), dim=-1).values
    margin = largest[..., :1] - largest[..., -1:]
    gate = alpha * torch.sigmoid(config.gate_k * (margin - config.gate_tau))
    share = gate.clamp(config.alpha_lo, config.alpha_hi)
    return share * seed + (1.0 - share) * host


_MIXERS: Mapping[BlendMode, Callable[[BlendConfig, float, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    BlendMode.CONVEX: _convex,
    BlendMode.RESIDUAL: _residual,
    BlendMode.CHANNEL: _channel,
    BlendMode.CONFIDENCE: _confidence,
}


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, host: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(change, torch.linalg.vector_norm(host.float()))
        return host.clone()  # not a view: the host may work on its output in place

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        change, host_norm = ctx.saved_tensors
        pull = torch.linalg.vector_norm(gradient.float()) / (TRUST * host_norm + _TINY)
        return gradient, gradient + (pull * change).to(gradient.dtype)


class _FiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, host: torch.Tensor) -> torch.Tensor:
        return host.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
