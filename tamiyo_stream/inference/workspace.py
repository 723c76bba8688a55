"""Memory that an executor keeps between forwards, so that no forward pays for the pages of fresh memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Buffers by name, for one thread: a buffer's rows are valid until it is asked for again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def rows(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised [rows, width] view of the buffer ``name``, which grows as needed.

        A name has one type.
        """
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < rows * width:
            buffer = self._buffers[name] = torch.empty(rows * width, dtype=dtype, device=self._device)
        return buffer[: rows * width].view(rows, width)
