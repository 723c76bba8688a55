"""Kernels that work on each position by itself. All of them put out zero until they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tamiyo_stream.upstream.urza.gates import zeroed
from tamiyo_stream.upstream.urza.kernel import Parameters


class BottleneckAdapter(nn.Module):
    """Down to ``rank`` channels, GELU, and up again (arXiv 1902.00751)."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        rank = int(parameters["rank"])
        self.down = nn.Linear(width, rank)
        self.activation = nn.GELU()
        self.up = zeroed(nn.Linear(rank, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        output: Tensor = self.up(self.activation(self.down(features)))
        return output


class NormLinear(nn.Module):
    """Layer norm with ``norm_epsilon``, then a linear map."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=parameters["norm_epsilon"])
        self.output = zeroed(nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        output: Tensor = self.output(self.norm(features))
        return output


class GeluMlp(nn.Module):
    """The transformer's feed-forward block, ``expansion`` times as wide inside; drops ``dropout`` of it."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        inner = int(width * parameters["expansion"])
        self.expand = nn.Linear(width, inner)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(parameters.get("dropout", 0.0))
        self.contract = zeroed(nn.Linear(inner, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        output: Tensor = self.contract(self.dropout(self.activation(self.expand(features))))
        return output


class GatedMlp(nn.Module):
    """SwiGLU, ``expansion`` times as wide inside (arXiv 2002.05202)."""

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        inner = int(width * parameters["expansion"])
        self.value = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.activation = nn.SiLU()
        self.contract = zeroed(nn.Linear(inner, width, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        gated: Tensor = self.activation(self.gate(features)) * self.value(features)
        output: Tensor = self.contract(gated)
        return output


class SoftExperts(nn.Module):
    """``experts`` bottlenecks side by side, each weighed per position by a softmax router.

    Soft routing: every expert sees every position, so that no expert can starve.
    """

    RANK = 4

    def __init__(self, width: int, parameters: Parameters) -> None:
        super().__init__()
        experts = int(parameters["experts"])
        self.router = nn.Linear(width, experts)
        self.weigh = nn.Softmax(dim=-1)
        self.down = nn.Linear(width, experts * self.RANK)
        self.activation = nn.GELU()
        self.up = zeroed(nn.Linear(experts * self.RANK, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return what is added to ``features`` [..., width]."""
        weights: Tensor = self.weigh(self.router(features))
        inner: Tensor = self.activation(self.down(features))
        output: Tensor = self.up(inner * torch.repeat_interleave(weights, self.RANK, dim=-1))
        return output
