"""The picture of a run's model: its layers as cells in depth order, and where on them its seeds sit.

Models with more layers than can be told apart are folded: a cell then stands for neighbouring layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.kasmina import SeedState
from schemas.urza import Blueprint, BlueprintLayers, EdgeList

#: Cells drawn; beyond them layers are folded.
MAX_CELLS = 320
MAX_LINES = 1200
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer, or ``layers`` neighbouring ones. ``parameters``: trainable scalars, None where not published."""

    name: str
    type: str
    depth: int
    block: str
    parameters: float | None
    layers: int


@dataclass(frozen=True, slots=True)
class Picture:
    """Cells in depth order, the lines between them, and the cell of each layer id."""

    blueprint_id: str
    blueprint_version: str
    cells: tuple[Cell, ...]
    lines: tuple[tuple[int, int], ...]
    cell_of: Mapping[str, int]
    #: Cell of each layer, in the blueprint's order.
    order: tuple[int, ...]

    def cells_of(self, seed: SeedState) -> list[int]:
        """Return the cells that ``seed`` watches; empty where its export does not say."""
        return sorted(
            {self.cell_of[m.layer_id] for m in seed.monitored_layers or () if m.layer_id in self.cell_of}
        )

    def shares(self, by_layer: Mapping[str, float]) -> dict[int, float]:
        """Return ``by_layer`` (layer id -> share) by cell; layers that are not drawn are left out."""
        found: dict[int, float] = {}
        for layer, share in by_layer.items():
            cell = self.cell_of.get(layer)
            if cell is not None:
                found[cell] = found.get(cell, 0.0) + share
        return found

    def largest(self, column: Sequence[float] | np.ndarray) -> list[float | None]:
        """Return the largest finite value of ``column`` (blueprint order) per cell; None where there is none."""
        found: list[float | None] = [None] * len(self.cells)
        if len(column) != len(self.order):
            return found
        for cell, value in zip(self.order, np.asarray(column, dtype=np.float64).tolist(), strict=True):
            if np.isfinite(value) and (found[cell] is None or value > (found[cell] or 0.0)):
                found[cell] = value
        return found


def draw(blueprint: Blueprint) -> Picture | None:
    """Return the picture of ``blueprint``; None where it has no layers."""
    layers = blueprint.graph.layers if blueprint.graph is not None else None
    if layers is None or not layers.layer_id:
        return None
    depths = _depths(layers)
    ranked = sorted(range(len(depths)), key=lambda position: (depths[position], position))
    fold = -(-len(ranked) // MAX_CELLS)
    groups = [ranked[start : start + fold] for start in range(0, len(ranked), fold)]
    order = [0] * len(ranked)
    for number, group in enumerate(groups):
        for position in group:
            order[position] = number
    connects = blueprint.graph.adjacency.connects if blueprint.graph and blueprint.graph.adjacency else None
    return Picture(
        blueprint_id=blueprint.blueprint_id,
        blueprint_version=blueprint.blueprint_version,
        cells=tuple(_cell(layers, depths, group) for group in groups),
        lines=_lines(connects, order),
        cell_of=dict(zip(layers.layer_id, order, strict=True)),
        order=tuple(order),
    )


def block_of(layer_id: str) -> str:
    """Return the repeated part of the model that a layer belongs to, as ``blocks.0``; empty where none shows."""
    parts = layer_id.split(".")
    for position, part in enumerate(parts[:-1]):
        if _NUMBER.fullmatch(part):
            return ".".join(parts[: position + 1])
    return ""


def _depths(layers: BlueprintLayers) -> list[int]:
    if layers.depth is None:
        return list(range(len(layers.layer_id)))
    return [int(depth) for depth in layers.depth]


def _cell(layers: BlueprintLayers, depths: list[int], group: list[int]) -> Cell:
    first, last = layers.layer_id[group[0]], layers.layer_id[group[-1]]
    return Cell(
        name=first if len(group) == 1 else f"{first} … {last}",
        type=Counter(layers.type[position] for position in group).most_common(1)[0][0],
        depth=depths[group[0]],
        block=block_of(first),
        parameters=_sum(layers.parameter_count, group),
        layers=len(group),
    )


def _sum(column: np.ndarray | None, group: Iterable[int]) -> float | None:
    if column is None:
        return None
    values = [float(column[position]) for position in group]
    known = [value for value in values if np.isfinite(value)]
    return sum(known) if known else None


def _lines(connects: EdgeList | None, order: list[int]) -> tuple[tuple[int, int], ...]:
    if connects is None:
        count = max(order) + 1
        return tuple((cell, cell + 1) for cell in range(count - 1))
    size = len(order)
    pairs = {
        (order[source], order[target])
        for source, target in zip(connects.source.tolist(), connects.target.tolist(), strict=True)
        if 0 <= source < size and 0 <= target < size
    }
    return tuple(sorted(pair for pair in pairs if pair[0] != pair[1])[:MAX_LINES])
