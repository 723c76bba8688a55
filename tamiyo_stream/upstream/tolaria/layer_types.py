"""What a module is to the blueprint: a layer, an activation, dropout, or nothing of its own.

Layers are the leaf modules that own parameters, and those without parameters that shape the network all the same
(norms, pooling). What is left (Flatten, Identity, losses, Upsample) only hands data on.
"""

from __future__ import annotations

import math
import re
from enum import Enum

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from tamiyo_stream.upstream.tolaria.activation_types import activation_of_module


class Role(Enum):
    """What a leaf module is to the blueprint."""

    LAYER = "layer"
    ACTIVATION = "activation"
    DROPOUT = "dropout"
    TRANSPARENT = "transparent"


_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
#: Attributes that name a module's width, input first. The first pair that a module has counts.
_WIDTHS: tuple[tuple[str, str], ...] = (
    ("in_features", "out_features"),
    ("in_channels", "out_channels"),
    ("num_embeddings", "embedding_dim"),
    ("embed_dim", "embed_dim"),
    ("input_size", "hidden_size"),
    ("num_features", "num_features"),
    ("num_channels", "num_channels"),
    ("normalized_shape", "normalized_shape"),
)
_SPLITS = (
    re.compile(r"(?<=[a-z0-9])(?=[A-Z])"),
    re.compile(r"(?<=[A-Z])(?=[A-Z][a-z])"),
)


def is_leaf(module: nn.Module) -> bool:
    """Return whether ``module`` is one unit: no children, or children that only hold its own weights.

    The latter are torch's own modules with parameters of their own (``nn.MultiheadAttention``, whose ``out_proj``
    is never called) and parametrised modules (weight norm). A user's module with children and parameters is looked
    into.
    """
    if next(module.children(), None) is None:
        # A childless module of the user's without weights is a function in disguise: look into it.
        return _is_torch(module) or next(module.parameters(), None) is not None
    if parametrize.is_parametrized(module):
        return all(name == "parametrizations" for name, _ in module.named_children())
    return _is_torch(module) and next(module.parameters(recurse=False), None) is not None


def role_of(module: nn.Module) -> Role:
    """Return what the leaf ``module`` is to the blueprint."""
    if activation_of_module(module) is not None:
        return Role.ACTIVATION
    if isinstance(module, _DropoutNd):
        return Role.DROPOUT
    if next(module.parameters(), None) is not None or isinstance(module, _NORMS) or _is_pooling(module):
        return Role.LAYER
    return Role.TRANSPARENT


def layer_type(module: nn.Module) -> str:
    """Return the layer type: the class name in snake case, as ``conv2d`` or ``multihead_attention``."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__mro__[1]  # parametrize derives a class at run time
    # torch's attention calls its output projection by a class of its own
    name = "Linear" if kind.__name__ == "NonDynamicallyQuantizableLinear" else kind.__name__
    for split in _SPLITS:
        name = split.sub("_", name)
    return name.lower()


def channels_of(module: nn.Module) -> tuple[float, float]:
    """Return input and output width of ``module``; NaN where it has none (pooling, user-defined layers)."""
    for names in _WIDTHS:
        widths = tuple(getattr(module, name, None) for name in names)
        if all(width is not None for width in widths):
            return _width(widths[0]), _width(widths[1])
    return math.nan, math.nan


def _width(value: object) -> float:
    last = value[-1] if isinstance(value, tuple | list) and value else value
    return float(last) if isinstance(last, int) else math.nan


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))


def _is_pooling(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.pooling"
