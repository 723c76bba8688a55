"""Rows: raw matrices of blocks, filled from columns (one element per node) and from objects (seeds, kernels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.kasmina import SeedState
from tamiyo_stream.graph.blocks import Block
from tamiyo_stream.graph.features import Kind
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import Relation
from tamiyo_stream.graph.sources import Subjects, number, path_of, read, walk
from tamiyo_stream.graph.structures import FloatArray, IndexArray
from tamiyo_stream.graph.topology import Wiring

#: A relation and the wiring of its edges.
Place = tuple[Relation, Wiring]


def fill_columns(block: Block, subjects: Subjects, count: int, place: Place | None) -> FloatArray:
    """Return the raw matrix of ``block`` for ``count`` nodes, or for the edges of ``place``.

    A field's fallback is read, element by element, where its source is missing.
    """
    raw = np.empty((block.rows, count), dtype=np.float32)
    for entry, rows in zip(block.fields, block.slices, strict=True):
        filled = False
        for source in entry.sources:
            column = walk(path_of(source), subjects)
            if column is None:
                continue
            found = pick(column, _positions(place[0].source, source, place[1]) if place is not None else None)
            if filled:
                np.copyto(raw[rows], found, where=~np.isfinite(raw[rows]))
            else:
                raw[rows] = found
                filled = True
        if not filled:
            raw[rows] = np.nan
    return raw


def pick(column: Any, positions: IndexArray | None) -> Any:
    """Return ``column`` (or a scalar as it is) at ``positions``; NaN where that is -1 or the column is empty."""
    if positions is None or np.ndim(column) == 0:
        return column
    if not len(column):
        return np.nan
    picked = np.asarray(column)[positions]
    return np.where(positions >= 0, picked, np.nan) if positions.size and positions.min() < 0 else picked


def fill_objects(block: Block, subjects: Sequence[Subjects], registries: Registries) -> FloatArray:
    """Return the raw matrix of ``block`` for objects that are read one by one (seeds, kernels)."""
    raw = block.empty(len(subjects))
    for entry, rows in zip(block.fields, block.slices, strict=True):
        for position, subject in enumerate(subjects):
            value = read(entry.sources, subject)
            if value is None:
                continue
            if entry.kind is Kind.MULTI_HOT:
                raw[rows, position] = [float(label in value) for label in entry.labels]
            else:
                raw[rows, position] = number(value, entry, registries)
    return raw


def monitor_subjects(seeds: tuple[SeedState, ...], wiring: Wiring) -> list[Subjects]:
    """Return the subjects of each monitor edge: its seed, and the entry in that seed's list."""
    listed = [layer for seed in seeds for layer in seed.monitored_layers or ()]
    return [
        {
            "seed": {
                "quarantine_only": seeds[seed].quarantine_only,
                "monitored_layers": listed[origin] if origin >= 0 else None,
            }
        }
        for seed, origin in zip(wiring.source.tolist(), wiring.origin.tolist(), strict=True)
    ]


def _positions(relation_source: str, source: str, wiring: Wiring) -> IndexArray:
    """Return, per edge, the element of the column at ``source`` that describes it."""
    path = path_of(source)
    if path[:2] == ("state", "edges") or "adjacency" in path:
        return wiring.origin
    group = path[1] if path[0] == "state" else path[2]
    return wiring.source if group == f"{relation_source}s" else wiring.target
