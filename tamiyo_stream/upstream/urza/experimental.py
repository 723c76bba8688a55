"""Kernels that can pay and can hurt: activations without a bound on slope or growth. An operator approves them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tamiyo_stream.upstream.urza.gates import zeroed
from tamiyo_stream.upstream.urza.kernel import Parameters


class SinusoidalBlock(nn.Module):
    """Sine activation with ``frequency`` (arXiv 2006.09661): its slope grows with the frequency."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.frequency = parameters["frequency"]
        self.phase = nn.Linear(width, width)
        self.output = zeroed(nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        output: Tensor = self.output(torch.sin(self.frequency * self.phase(features)))
        return output


class PolynomialGate(nn.Module):
    """Powers of the projected features up to ``order``, each with a learned weight: grows as the highest power."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.order = int(parameters["order"])
        self.projection = nn.Linear(width, width)
        self.weights = nn.Parameter(torch.zeros(self.order, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        base: Tensor = self.projection(features)
        powers = torch.stack([base**exponent for exponent in range(1, self.order + 1)], dim=-2)
        return (powers * self.weights).sum(dim=-2)
