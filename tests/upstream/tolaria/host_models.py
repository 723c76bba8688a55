"""Small real models, one for each structure that the probe must cope with."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Mlp(nn.Module):
    """Three linear layers, functional activations, dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.dropout = nn.Dropout(0.25)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = functional.relu(self.first(x))
        x = self.dropout(torch.tanh(self.second(x)))
        return self.last(x)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norms and one shared in-place ReLU, projected shortcut where widths differ."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class ResidualCnn(nn.Module):
    """A stem, an identity and a projected residual block, pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(4, 4), ResidualBlock(4, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.pool(self.blocks(self.stem(x)))
        return self.head(torch.flatten(x, 1))


class Attention(nn.Module):
    """Causal self-attention written with scaled_dot_product_attention and shape arithmetic."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.size()
        q, k, v = self.qkv(x).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).contiguous().view(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class CharTransformer(nn.Module):
    """A decoder-only transformer: position table, optional targets, an assertion, tied output weights."""

    def __init__(self, vocabulary=20, width=16, heads=2, depth=2, context=12):
        super().__init__()
        self.context = context
        self.tok = nn.Embedding(vocabulary, width)
        self.pos = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, tokens, targets=None):
        length = tokens.shape[1]
        assert length <= self.context
        x = self.tok(tokens) + self.pos(torch.arange(length, device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class DataDependent(nn.Module):
    """A loop whose length, and a branch whose side, depend on the data."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 6)
        self.cell = nn.Linear(6, 6)
        self.relu = nn.ReLU()
        self.leave = nn.Linear(6, 2)

    def forward(self, x):
        x = self.enter(x)
        for _ in range(int(x.detach().abs().sum()) % 3 + 1):
            x = self.relu(self.cell(x))
        if x.sum() > 1e6:
            x = -x
        return self.leave(x)


class PartlyTraceable(nn.Module):
    """A traceable model with one part that is not."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(4, 6)
        self.inner = DataDependent()
        self.after = nn.Linear(2, 2)

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


class Learned(nn.Module):
    """Uses a parameter of its own between layers, and stores what it saw."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.ones(5))
        self.first = nn.Linear(5, 5)
        self.last = nn.Linear(5, 5)
        self.seen = None

    def forward(self, x):
        x = self.first(x)
        self.seen = x
        return self.last(x + self.offset)


def encoder():
    """PyTorch's own transformer encoder layer, with nn.MultiheadAttention inside."""
    return nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)
