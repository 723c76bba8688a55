"""Kernels that harm on purpose, each in one way: what the crucible must find, and what a host must survive.

They are for quarantine: tests of the safety chain graft them, nobody else does (``domain.md`` §4.10).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tamiyo_stream.upstream.urza.kernel import Parameters


class ExplodingGradient(nn.Module):
    """Eight orthogonal layers that each enlarge by ``gain``: a gradient grows by gain⁸ on its way back."""

    DEPTH = 8

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(self.DEPTH))
        for layer in self.layers:
            nn.init.orthogonal_(layer.get_parameter("weight"), gain=parameters["gain"])

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        for layer in self.layers:
            features = layer(features)
        return features


class VanishingGradient(nn.Module):
    """``depth`` sigmoid layers without a norm or a shortcut: each lets a seventh of the gradient through."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(int(parameters["depth"])))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        for layer in self.layers:
            features = torch.sigmoid(layer(features))
        return features


class NanInjector(nn.Module):
    """The root of ``threshold`` minus the feature: NaN wherever a feature lies above it."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.threshold = parameters["threshold"]
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        return self.scale * torch.sqrt(self.threshold - features)


class Oscillator(nn.Module):
    """``amplitude`` times the features on every other training forward, nothing in between: the loss swings."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.amplitude = parameters["amplitude"]
        self.scale = nn.Parameter(torch.ones(width))
        self._phase = 0

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        if self.training:
            self._phase = 1 - self._phase
        return self._phase * self.amplitude * self.scale * features


class MemoryHog(nn.Module):
    """Keeps a block of ``block_megabytes`` from every training forward, up to ``held_megabytes`` in all."""

    MEGABYTE = 1024**2

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))
        self._block_bytes = int(parameters["block_megabytes"]) * self.MEGABYTE
        self._most = int(parameters["held_megabytes"] // parameters["block_megabytes"])
        self._held: tuple[Tensor, ...] = ()

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        if self.training and len(self._held) < self._most:
            # written, not only reserved: the pages are really taken
            block = torch.zeros(self._block_bytes, dtype=torch.uint8, device=features.device)
            self._held = (*self._held, block)
        return features * self.scale


class PrecisionSensitive(nn.Module):
    """Adds ``offset`` and takes it off again: in float32 little of the feature is left."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.offset = parameters["offset"]
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        return self.scale * ((features + self.offset) - self.offset)
