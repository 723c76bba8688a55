"""The digest that identifies a network's weights in commands, telemetry and checkpoints."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 (hex) over name, dtype, shape and bytes of every tensor of the state, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
