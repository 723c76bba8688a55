"""Kernels that look along the sequence, [..., positions, width]. All are causal: they fit a language model.

Features without a sequence ([batch, width], as in an MLP) count as sequences of one position: samples of a batch
never see each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from tamiyo_stream.upstream.urza.gates import zeroed
from tamiyo_stream.upstream.urza.kernel import Parameters


def as_sequences(features: Tensor) -> Tensor:
    """Return ``features`` [..., positions, width] as [sequences, positions, width]."""
    if features.dim() < 3:
        return features.reshape(-1, 1, features.shape[-1])
    return features.reshape(-1, *features.shape[-2:])


fx.wrap("as_sequences")  # it branches on the rank: one operation to the tracer


class TemporalConv(nn.Module):
    """Depthwise convolution over the last ``kernel_size`` positions, then a pointwise map; zero until trained."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.reach = int(parameters["kernel_size"]) - 1
        self.depthwise = nn.Conv1d(width, width, self.reach + 1, groups=width)
        self.activation = nn.SiLU()
        self.pointwise = zeroed(nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        channels = as_sequences(features).transpose(1, 2)
        mixed: Tensor = self.depthwise(functional.pad(channels, (self.reach, 0)))
        output: Tensor = self.pointwise(self.activation(mixed.transpose(1, 2)))
        return output.reshape(features.shape)


class LowRankAttention(nn.Module):
    """One causal attention head with queries, keys and values of ``rank`` channels; zero until trained."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        rank = int(parameters["rank"])
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, rank)
        self.key = nn.Linear(width, rank)
        self.value = nn.Linear(width, rank)
        self.output = zeroed(nn.Linear(rank, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        sequences = self.norm(as_sequences(features))
        query, key, value = self.query(sequences), self.key(sequences), self.value(sequences)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(attended)
        return output.reshape(features.shape)


class FastWeights(nn.Module):
    """A weight matrix written by each position and read by the later ones, fading by ``decay`` a position.

    The parallel form of decayed linear attention (arXiv 1610.06258, 2307.08621): experimental, for what it holds
    grows with the sequence and it has no softmax that would bound it.
    """

    RANK = 16

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.log_decay = math.log(parameters["decay"])
        self.write_key = nn.Linear(width, self.RANK)
        self.write_value = nn.Linear(width, self.RANK)
        self.read = nn.Linear(width, self.RANK)
        self.output = zeroed(nn.Linear(self.RANK, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        sequences = as_sequences(features)
        matches = torch.matmul(self.read(sequences), self.write_key(sequences).transpose(1, 2))
        position = torch.arange(sequences.shape[1], device=sequences.device)
        age = position[:, None] - position[None, :]
        # an age below zero is the future: no weight at all
        fading = torch.exp(self.log_decay * age.clamp(min=0)) * (age >= 0)
        read = torch.matmul(matches * fading.to(matches.dtype), self.write_value(sequences))
        output: Tensor = self.output(read / self.RANK)
        return output.reshape(features.shape)
