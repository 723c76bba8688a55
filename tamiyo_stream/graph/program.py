"""Programs: what a step writes, worked out once for each choice of what upstream sends (design §6).

Which sources are there seldom changes from step to step. So a program is compiled per structure and choice: fields
nobody sends, and those that only blueprint or safety sheet speak of, are written into a buffer once; the rest is
one block, filled, encoded and written in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamiyo_stream.graph.blocks import Block, Field, Part, Target, states
from tamiyo_stream.graph.coverage import Tally, tallies_of
from tamiyo_stream.graph.families import FAMILIES, Family, is_scalar
from tamiyo_stream.graph.features import Transform
from tamiyo_stream.graph.layout import Layout
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.sources import Subjects, number, path_of, walk
from tamiyo_stream.graph.step_values import SETTLED_SOURCES, STEP_SOURCES
from tamiyo_stream.graph.structures import IndexArray
from tamiyo_stream.graph.writers import Uniform, writers_of
from tamiyo_stream.runs.state import EwmaNorm

#: Which of :data:`STEP_SOURCES` have a value.
Available = tuple[bool, ...]
_STEP_INDEX = {source: index for index, source in enumerate(STEP_SOURCES)}


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """A column by index, and the element of it per row (None: they correspond)."""

    index: int
    positions: IndexArray | None


@dataclass(frozen=True, slots=True, eq=False)
class _Feed:
    """A part and where its values come from: the first input, the second where an element of it is missing.

    ``settled``: no step changes anything of it.
    """

    part: Part
    inputs: tuple[_Input, ...]
    settled: bool


class Program:
    """The writing of steps that bring the ``available`` sources.

    Args:
        layout: rows and wiring of the structure.
        available: what the steps bring.
        settled: the ``blueprint`` and ``sheet`` subjects.
        registries: number the categories.
    """

    def __init__(self, layout: Layout, available: Available, settled: Subjects, registries: Registries) -> None:
        self._layout = layout
        self._registries = registries
        self._available = available
        self._subjects = settled
        self._constants: list[Any] = []
        self._constant_index: dict[str, int] = {}
        live: list[_Feed] = []
        once: list[_Feed] = []
        masked_once: set[str] = set()
        for family in FAMILIES:
            if layout.rows[family.target]:
                for feeds in self._mask_groups(family):
                    _sort(feeds, live, once, masked_once)
        unmasked = frozenset(masked_once)
        self._live = _Filled(live, registries)
        self._writers = writers_of(self._live.block, layout.rows, unmasked)
        settled_part = _Filled(once, registries)
        settled_part.fill([None] * len(STEP_SOURCES) + self._constants)
        self._once = settled_part.block
        self._once_present = self._once.encode({})
        self._once_writers = writers_of(self._once, layout.rows, unmasked)
        self._once_states = states(self._once, self._once.counts(self._once_present))

    def settle(self, arrays: Callable[[Target], Any]) -> set[Target]:
        """Write what no step changes into a buffer that another program wrote; return which arrays."""
        for writer in self._once_writers:
            writer.write(arrays(writer.target), self._once, self._once_present, self._once_states, {})
        return {writer.target for writer in self._once_writers}

    def write(
        self,
        values: Sequence[Any],
        norms: Mapping[str, EwmaNorm],
        arrays: Callable[[Target], Any],
        uniform: Mapping[Target, Uniform],
    ) -> tuple[set[Target], list[int] | None]:
        """Write a step; return which arrays changed, and how many have each part (None: all of them).

        Args:
            values: of :data:`STEP_SOURCES`.
            norms: the run's moving statistics before this step.
            arrays: the arrays of the buffer by target.
            uniform: of each target, the slots that hold one value in all rows.
        """
        self._live.fill([*values, *self._constants])
        block = self._live.block
        present = block.encode(norms)
        counts = None if present is None else block.counts(present)
        marks = () if counts is None else states(block, counts)
        changed = {
            writer.target
            for writer in self._writers
            if writer.write(arrays(writer.target), block, present, marks, uniform[writer.target])
        }
        return changed, counts

    def tallies(self, counts: list[int] | None) -> list[Tally]:
        """Return what was there: of the settled fields, and of the others as :meth:`write` counted them."""
        block = self._live.block
        settled = tallies_of(self._once, self._once.counts(self._once_present))
        return settled + tallies_of(block, block.counts(None) if counts is None else counts)

    def _mask_groups(self, family: Family) -> list[list[_Feed]]:
        """Feeds of the family's step fields; fields that share a mask are together."""
        groups: dict[object, list[_Feed]] = {}
        for entry in family.step:
            groups.setdefault(entry.key if entry.mask is None else entry.mask, []).append(
                self._feed(family, entry)
            )
        return list(groups.values())

    def _feed(self, family: Family, entry: Field) -> _Feed:
        scalar = is_scalar(entry)
        part = self._layout.part(family.target, entry, scalar=scalar)
        found = [
            _Input(index, None if scalar else self._layout.positions(family.target, source))
            for source in entry.sources
            if (index := self._index_of(source)) is not None
        ]
        if not found or (isinstance(part.total, float) and math.isnan(part.total)):
            return _Feed(self._layout.part(family.target, entry, scalar=True), (), settled=True)
        moves = entry.transform is Transform.EWMA or any(each.index < len(STEP_SOURCES) for each in found)
        return _Feed(part, tuple(found), settled=not moves)

    def _index_of(self, source: str) -> int | None:
        """Return the column of ``source``, None where it has none."""
        if not source.startswith(SETTLED_SOURCES):
            index = _STEP_INDEX[source]
            return index if self._available[index] else None
        if source not in self._constant_index:
            value = walk(path_of(source), self._subjects)
            if value is None:
                return None
            self._constant_index[source] = len(STEP_SOURCES) + len(self._constants)
            self._constants.append(value)
        return self._constant_index[source]


def _sort(feeds: list[_Feed], live: list[_Feed], once: list[_Feed], masked_once: set[str]) -> None:
    """Divide the fields of one mask: it is settled where one of them is missing throughout."""
    missing = any(not feed.inputs for feed in feeds)
    if missing:
        masked_once.update(feed.part.field.key for feed in feeds if feed.inputs)
    together = not missing and not all(feed.settled for feed in feeds)
    for feed in feeds:
        (live if together or not feed.settled else once).append(feed)


class _Filled:
    """A block and how its raw values are filled in from columns."""

    def __init__(self, feeds: Sequence[_Feed], registries: Registries) -> None:
        ordered = sorted(feeds, key=lambda feed: feed.part.field.group)  # as the block orders them
        self.block = Block(feed.part for feed in ordered)
        self._registries = registries
        placed = [pair for pair in zip(ordered, self.block.slices, strict=True) if pair[0].inputs]
        self._scalars = [
            (where.start, feed.inputs[0].index, feed.part.field)
            for feed, where in placed
            if is_scalar(feed.part.field)
        ]
        columns = [(feed, where) for feed, where in placed if not is_scalar(feed.part.field)]
        self._columns = [(where, feed.inputs[0].index, feed.inputs[0].positions) for feed, where in columns]
        self._stand_ins = [
            (where, second.index, second.positions) for feed, where in columns for second in feed.inputs[1:]
        ]

    def fill(self, values: Sequence[Any]) -> None:
        """Fill the raw values in from ``values``, columns and numbers by index."""
        raw = self.block.values
        for position, index, entry in self._scalars:
            raw[position] = number(values[index], entry, self._registries)
        for where, index, positions in self._columns:
            column = values[index]
            raw[where] = column if positions is None else column[positions]
        if self._stand_ins and not np.isfinite(raw).all():
            for where, index, positions in self._stand_ins:
                column = values[index]
                stand_in = column if positions is None else column[positions]
                np.copyto(raw[where], stand_in, where=~np.isfinite(raw[where]))
