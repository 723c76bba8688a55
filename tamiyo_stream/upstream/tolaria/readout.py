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
        self._scalars: dict[str, list[torch.Tensor]] = {}

    def put(self, name: str, scalars: Sequence[torch.Tensor]) -> None:
        """Add ``scalars`` [()], which need no gradient, under ``name``, replacing what was there."""
        self._scalars[name] = list(scalars)

    def read(self) -> dict[str, FloatArray]:
        """Return the values by name, each [number put], and forget the tensors. One copy per device and dtype."""
        flat = [scalar for scalars in self._scalars.values() for scalar in scalars]
        values = np.empty(len(flat))
        by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for position, scalar in enumerate(flat):
            by_kind.setdefault((scalar.device, scalar.dtype), []).append(position)
        for positions in by_kind.values():
            stacked = torch.stack([flat[position] for position in positions])
            values[positions] = stacked.to(torch.float32).cpu().numpy()
        ends = np.cumsum([len(scalars) for scalars in self._scalars.values()])
        parts = np.split(values, ends[:-1]) if len(ends) else []
        names, self._scalars = list(self._scalars), {}
        return dict(zip(names, parts, strict=True))
