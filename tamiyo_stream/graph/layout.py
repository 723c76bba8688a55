"""Layout: how many rows each array of a structure has, and which element of a column describes each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tamiyo_stream.graph.blocks import Field, Part, Target
from tamiyo_stream.graph.features import Total
from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.sources import path_of
from tamiyo_stream.graph.structures import IndexArray
from tamiyo_stream.graph.wiring import Wiring


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """``rows``: nodes of each type and edges of each forward relation. ``depth``: of the deepest layer, or NaN."""

    rows: Mapping[Target, int] = field(repr=False)
    wirings: Mapping[EdgeType, Wiring] = field(repr=False)
    depth: float

    def part(self, target: Target, entry: Field, *, scalar: bool = False) -> Part:
        """Return ``entry`` as a part with a value per row of ``target``; ``scalar``: with one for all."""
        total = entry.total
        if total is Total.DEPTH:
            total = self.depth
        elif total is Total.FAN_OUT and isinstance(target, tuple):
            total = float(self.wirings[target].max_fan_out)
        return Part(target, entry, 1 if scalar else self.rows[target], total)

    def positions(self, target: Target, source: str) -> IndexArray | None:
        """Return, per row of ``target``, the element of the column at ``source`` that describes it.

        None: rows and elements correspond, or the value is one for all.
        """
        if isinstance(target, str):
            return None
        wiring, path = self.wirings[target], path_of(source)
        if path[:2] in (("state", "edges"), ("seed", "monitored_layers")) or "adjacency" in path:
            return wiring.origin
        node_type = {"seed": "seed", "run": "blueprint"}.get(path[0]) or path[1 if path[0] == "state" else 2][:-1]
        return wiring.source if node_type == target[0] else wiring.target


def pick(column: Any, positions: IndexArray | None) -> Any:
    """Return ``column`` (or a scalar as it is) at ``positions`` of its last axis; NaN where that is -1."""
    if positions is None or np.ndim(column) == 0:
        return column
    if not np.shape(column)[-1]:
        return np.nan
    picked = np.asarray(column)[..., positions]
    return np.where(positions >= 0, picked, np.nan) if positions.size and positions.min() < 0 else picked
