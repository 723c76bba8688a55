"""Getting measured scalars off the device with one synchronisation per step.

Every measurement stays a zero-dimensional tensor until the end of the step; then all of them are stacked and
copied at once. A ``.item()`` per layer would stall a GPU a hundred times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]


class Readout:
    """Collects zero-dimensional tensors by name; :meth:`read` returns their values."""

    def __init__(self) -> None:
        self._vectors: dict[str, torch.Tensor] = {}

    def put(self, name: str, scalars: Sequence[torch.Tensor]) -> None:
        """Add ``scalars`` [()], which need no gradient, under ``name``, replacing what was there."""
        if len({scalar.device for scalar in scalars}) > 1:  # a model spread over devices: each waits for its own
            scalars = [scalar.cpu() for scalar in scalars]
        self._vectors[name] = torch.stack(list(scalars)).to(torch.float32) if scalars else torch.empty(0)

    def read(self) -> dict[str, FloatArray]:
        """Return the values by name, each [number put], and forget the tensors. One copy per device."""
        by_device: dict[torch.device, list[str]] = {}
        for name, vector in self._vectors.items():
            by_device.setdefault(vector.device, []).append(name)
        values: dict[str, FloatArray] = {}
        for names in by_device.values():
            vectors = [self._vectors[name] for name in names]
            flat = torch.cat(vectors).cpu().numpy().astype(np.float64)
            ends = np.cumsum([vector.numel() for vector in vectors])
            values |= zip(names, np.split(flat, ends[:-1]), strict=True)
        self._vectors = {}
        return values
