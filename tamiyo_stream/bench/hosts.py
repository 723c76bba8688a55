"""Host models of the kinds and sizes that are trained, with the batch and the learning rates they are trained at.

Those too large to train here live on torch's ``meta`` device: they have a structure and shapes, but no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from tamiyo_stream.demo.transformer import CharTransformer

META = torch.device("meta")
#: Steps over which a schedule runs.
SCHEDULE_STEPS = 100


@dataclass(frozen=True, slots=True)
class Host:
    """A model with the input of one step and how it is optimised; ``trainable``: small enough to train here."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    schedule: Callable[[Optimizer], LRScheduler]
    trainable: bool = False


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms and a shortcut (He et al. 2015, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        mapped: Tensor = self.relu(y + self.shortcut(x))
        return mapped


def mlp() -> nn.Module:
    """Three linear layers on the pixels of CIFAR images."""
    return nn.Sequential(
        nn.Linear(3072, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 10)
    )


def resnet18() -> nn.Module:
    """The 18-layer residual network for ImageNet (He et al. 2015, table 1): 11.7 million weights."""
    widths = (64, 64, 128, 256, 512)
    blocks = [
        BasicBlock(before if first else width, width, 2 if first and before != width else 1)
        for before, width in pairwise(widths)
        for first in (True, False)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    )


def _characters() -> nn.Module:
    return CharTransformer(96)


def _gpt2() -> nn.Module:
    """Sizes of the smallest GPT-2: 124 million weights."""
    return CharTransformer(50_257, length=1024, width=768, heads=12, depth=12)


def _on_meta(model: Callable[[], nn.Module]) -> nn.Module:
    with META:
        return model()


def _sgd(model: nn.Module, lr: float) -> Optimizer:
    return SGD(model.parameters(), lr, momentum=0.9)


def _adamw(model: nn.Module, lr: float) -> Optimizer:
    return AdamW(model.parameters(), lr)


def _cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, SCHEDULE_STEPS, eta_min=1e-5)


def _warm_up(optimizer: Optimizer) -> LRScheduler:
    """A tenth of the steps from a hundredth of the rate up, then down the cosine."""
    up = SCHEDULE_STEPS // 10
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, 0.01, total_iters=up),
            CosineAnnealingLR(optimizer, SCHEDULE_STEPS - up, eta_min=1e-5),
        ],
        [up],
    )


HOSTS: tuple[Host, ...] = (
    Host("mlp", mlp, partial(torch.randn, 64, 3072), partial(_sgd, lr=0.01), _cosine, trainable=True),
    Host(
        "character transformer",
        _characters,
        partial(torch.randint, 96, (16, 64)),
        partial(_adamw, lr=1e-3),
        _warm_up,
        trainable=True,
    ),
    Host(
        "resnet-18",
        partial(_on_meta, resnet18),
        partial(torch.empty, 64, 3, 224, 224, device=META),
        partial(_sgd, lr=0.1),
        _cosine,
    ),
    Host(
        "gpt-2 small",
        partial(_on_meta, _gpt2),
        partial(torch.zeros, 8, 1024, dtype=torch.long, device=META),
        partial(_adamw, lr=6e-4),
        _warm_up,
    ),
)
