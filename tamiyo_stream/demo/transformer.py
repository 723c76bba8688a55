"""The model that the demo trains: a small character-level transformer (decoder only, pre-norm, tied output)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CausalAttention(nn.Module):
    """Multi-head self-attention that sees only earlier characters.

    Written out instead of ``scaled_dot_product_attention``, whose probabilities nobody can observe: the softmax is
    an activation like others, and Tamiyo wants to know when it saturates.
    """

    future: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(width, width)
        self.register_buffer("future", torch.full((length, length), -torch.inf).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].transpose(-2, -1) * (width // self.heads) ** -0.5
        mixed = self.softmax(scores + self.future[:length, :length]) @ parts[2]
        mapped: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return mapped


class Block(nn.Module):
    """Attention and feed-forward, each with its residual."""

    def __init__(self, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, length)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.activation = nn.GELU()
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        x = x + self.attention(self.norm1(x))
        fed: Tensor = self.dropout(self.contract(self.activation(self.expand(self.norm2(x)))))
        return x + fed


class CharTransformer(nn.Module):
    """Predicts the next character. The output layer shares its weights with the embedding."""

    def __init__(
        self,
        alphabet: int,
        *,
        length: int = 64,
        width: int = 96,
        heads: int = 4,
        depth: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.length = length
        self.width = width
        self.embedding = nn.Embedding(alphabet, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, length, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, alphabet, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.output.weight = self.embedding.weight

    def forward(self, characters: Tensor) -> Tensor:
        """Map indices [B, T] to logits [B, T, alphabet]."""
        x = self.embedding(characters) + self.position(torch.arange(characters.shape[1], device=characters.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.output(self.norm(x))
        return logits


def next_character_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of [B, T, alphabet] against [B, T]."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
