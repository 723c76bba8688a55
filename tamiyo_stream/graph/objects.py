"""Objects: seeds and kernels, whose fields are read one by one and only when one of them was replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from schemas.kasmina import SeedState
from tamiyo_stream.graph.blocks import Block, BoolArray, Field, Target, states
from tamiyo_stream.graph.coverage import Tally, tallies_of
from tamiyo_stream.graph.families import BY_TARGET, FAMILIES
from tamiyo_stream.graph.features import Kind
from tamiyo_stream.graph.layout import Layout, pick
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.sources import Subjects, number, path_of, read
from tamiyo_stream.graph.structures import FloatArray
from tamiyo_stream.graph.writers import writers_of

_LISTED = "seed.monitored_layers."


def read_objects(
    fields: Iterable[Field], subjects: Sequence[Subjects], registries: Registries
) -> dict[str, FloatArray]:
    """Return the raw values of ``fields`` for each of the ``subjects``: [width of the field, objects] by source.

    NaN for missing; the second source counts where the first has no value.
    """
    columns: dict[str, FloatArray] = {}
    for entry in fields:
        if entry.sources[0] not in columns:
            values = _values(entry.sources, subjects)
            columns[entry.sources[0]] = np.asarray(_numbers(entry, values, registries), dtype=np.float32)
    return columns


def _values(sources: tuple[str, ...], subjects: Sequence[Subjects]) -> list[Any]:
    root, *names = path_of(sources[0])
    if root == "seed" and len(names) == len(sources) == 1:  # most fields: a seed is never missing itself
        return [getattr(each["seed"], names[0]) for each in subjects]
    return [read(sources, each) for each in subjects]


def _numbers(entry: Field, values: list[Any], registries: Registries) -> list[list[float]]:
    if entry.kind is Kind.NUMERIC:
        return [values]  # None becomes NaN
    if entry.kind is Kind.MULTI_HOT:
        return [[np.nan if value is None else float(label in value) for value in values] for label in entry.labels]
    return [[number(value, entry, registries) for value in values]]


def _seed_fields() -> list[Field]:
    fields = [*BY_TARGET["seed"].fields]
    for target in (("seed", "monitors", "layer"), ("seed", "allowed", "parameter")):
        fields += [entry for entry in BY_TARGET[target].objects if not entry.sources[0].startswith(_LISTED)]
    return fields


#: The fields that are read of each seed: its own, its edges' and its moving statistics.
SEED_FIELDS = tuple(_seed_fields())
#: The fields that are read of each kernel.
KERNEL_FIELDS = (*BY_TARGET["blueprint"].objects, *BY_TARGET["parameter", "targets", "blueprint"].objects)


class Objects:
    """The slots of seeds and kernels, and of their edges, in one structure.

    ``number``: how many times they were read. ``moving``: by source, what the seeds' moving statistics are
    measured on; None where no seed exports it. ``counts``: nodes or edges that have each part.
    """

    def __init__(self, layout: Layout) -> None:
        self._block = Block(
            layout.part(family.target, entry)
            for family in FAMILIES
            if layout.rows[family.target]
            for entry in family.objects
        )
        self._writers = writers_of(self._block, layout.rows)
        self._fills = [
            (part, where, layout.positions(part.target, part.field.sources[0]))
            for part, where in zip(self._block.parts, self._block.slices, strict=True)
        ]
        self._present: BoolArray | None = None
        self.number = 0
        self.moving: dict[str, FloatArray | None] = {}
        self.counts: list[int] = []

    def take(
        self, seeds: Sequence[SeedState], of_seeds: dict[str, FloatArray], of_kernels: dict[str, FloatArray]
    ) -> None:
        """Take over what was read of the seeds and of the kernels, by source (:func:`read_objects`)."""
        of_seeds = {**of_seeds, **_listed_columns(seeds)}
        block = self._block
        for part, where, positions in self._fills:
            found = of_kernels if "blueprint" in part.target else of_seeds
            columns = found[part.field.sources[0]]
            raw = block.values[where].reshape(columns.shape[0], part.count)
            raw[:] = columns if positions is None else pick(columns, positions)
        self._present = block.encode({})
        self.counts = block.counts(self._present)
        self.number += 1
        measured = {entry.sources[0]: of_seeds[entry.sources[0]][0] for entry in BY_TARGET["seed"].step}
        self.moving = {
            source: column if np.isfinite(column).any() else None for source, column in measured.items()
        }

    def tallies(self) -> list[Tally]:
        """Return what was there."""
        return tallies_of(self._block, self.counts)

    def write(self, arrays: Callable[[Target], FloatArray]) -> set[Target]:
        """Write all slots into the arrays of a buffer; return which arrays."""
        marks = states(self._block, self.counts)
        for writer in self._writers:
            writer.write(arrays(writer.target), self._block, self._present, marks, {})
        return {writer.target for writer in self._writers}


def _listed_columns(seeds: Sequence[SeedState]) -> dict[str, FloatArray]:
    """Columns of all seeds' ``monitored_layers``, one behind the other: [1, entries] by source."""
    listed = [layer for seed in seeds for layer in seed.monitored_layers or ()]
    names = ("monitoring_frequency", "adaptation_trigger_threshold")
    return {
        f"{_LISTED}{name}": np.asarray([[getattr(layer, name) for layer in listed]], dtype=np.float32)
        for name in names
    }
