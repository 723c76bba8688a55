"""Real text that any machine has: the sources of the Python standard library, as character indices."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

#: Large enough not to be learnt by heart in a demo, small enough to load at once. Bytes.
CORPUS_BYTES = 2_000_000


class Corpus:
    """Text as indices into an alphabet of single bytes, and random windows of it."""

    def __init__(self, text: bytes, seed: int) -> None:
        self.alphabet = sorted(set(text))
        index = torch.zeros(256, dtype=torch.long)
        index[self.alphabet] = torch.arange(len(self.alphabet))
        self._data = index[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]
        self._generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int, length: int) -> tuple[Tensor, Tensor]:
        """Return inputs and next-character targets, both [size, length]."""
        starts = torch.randint(len(self._data) - length - 1, (size,), generator=self._generator)
        windows = self._data[starts[:, None] + torch.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]


def standard_library_text(limit: int = CORPUS_BYTES) -> bytes:
    """Return up to ``limit`` bytes of the standard library's own sources, in alphabetical order of files."""
    text = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return text[:limit]
