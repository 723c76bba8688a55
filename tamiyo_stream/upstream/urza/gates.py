"""Kernels that scale features rather than mix them: identity, scale and shift, squeeze-excite, highway."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tamiyo_stream.upstream.urza.kernel import Parameters


class Identity(nn.Module):
    """Hands its features on: the control of every comparison. Added to a host it doubles the features."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        del width, parameters  # there is nothing to size

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        return features


class ScaleShift(nn.Module):
    """``scale * x + shift`` per channel; ``initial_scale`` 0 starts as zero."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), parameters["initial_scale"]))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        return features * self.scale + self.shift


class SqueezeExciteGate(nn.Module):
    """Channels weigh each other: ``x * tanh(excite(relu(squeeze(x))))``, zero until trained.

    The channels of one position are squeezed, not the positions of one channel as in the convolutional original
    (arXiv 1709.01507): a mean over positions would show a causal host its future.
    """

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        squeezed = max(1, width // int(parameters["reduction"]))
        self.squeeze = nn.Linear(width, squeezed)
        self.activation = nn.ReLU()
        self.excite = zeroed(nn.Linear(squeezed, width))
        self.gate = nn.Tanh()

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        gate: Tensor = self.gate(self.excite(self.activation(self.squeeze(features))))
        return features * gate


class HighwayGate(nn.Module):
    """What a highway layer adds to its input, ``g(x) * (h(x) - x)`` (arXiv 1505.00387).

    ``gate_bias`` keeps the gate nearly closed at first: at -3 a twentieth of the difference comes through.
    """

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.carry = nn.Linear(width, width)
        nn.init.constant_(self.carry.bias, parameters["gate_bias"])
        self.gate = nn.Sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        gate: Tensor = self.gate(self.carry(features))
        transformed: Tensor = self.activation(self.transform(features))
        return gate * (transformed - features)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """Return ``linear`` with weights and bias zero: the last layer of a kernel that starts without an effect."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
