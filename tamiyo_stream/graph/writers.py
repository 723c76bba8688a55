"""Writers: the encoded parts of a block into the slots of a feature array.

What holds the same value in every row, such as a mask that is 1 throughout or a metric of the whole step, is
written only when that value changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tamiyo_stream.graph.blocks import Block, BoolArray, Target
from tamiyo_stream.graph.structures import FloatArray

#: Rows written at a time: a stripe of 128-wide rows stays in the second-level cache while its columns are written.
_STRIPE = 1024
#: Slots of an array that hold one value in all rows, and that value.
Uniform = dict[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """The parts of a block that go into the array of one ``target``.

    ``columns``: where in the block a value per row lies, and its slot; ``scalars``: position of a value for all
    rows, and its slot; ``masks``: mask slot and the parts (as indices) that must all be present for it to be 1.
    """

    target: Target
    columns: tuple[tuple[slice, int], ...]
    scalars: tuple[tuple[int, int], ...]
    masks: tuple[tuple[int, tuple[int, ...]], ...]

    def write(
        self,
        array: FloatArray,
        block: Block,
        present: BoolArray | None,
        states: Sequence[float | None],
        uniform: Uniform,
    ) -> bool:
        """Write into ``array`` [N, width]; return whether anything in it changed.

        Args:
            array: rows of the target.
            block: holds the encoded values.
            present: presence of every value; None: all.
            states: per part, its presence where that is the same for all rows.
            uniform: of the slots that this writer shares with no other; kept up to date.
        """
        values = block.values
        changed = bool(self.columns)
        _write_columns(array, values, self.columns)
        for position, slot in self.scalars:
            value = values.item(position)
            if uniform.get(slot) != value:
                array[:, slot] = uniform[slot] = value
                changed = True
        for slot, owners in self.masks:
            state = 1.0 if present is None else _joint([states[part] for part in owners])
            if state is None and present is not None:
                array[:, slot] = _all_present(block, present, owners, states)
                uniform.pop(slot, None)
            elif state is not None and uniform.get(slot) != state:
                array[:, slot] = uniform[slot] = state
                changed = True
        return changed


def writers_of(block: Block, rows: Mapping[Target, int], unmasked: frozenset[str] = frozenset()) -> list[Writer]:
    """Return a writer per target of ``block``.

    Args:
        block: the parts.
        rows: rows of each target's array.
        unmasked: keys of fields whose mask slot is written by somebody else.
    """
    parts_of: dict[Target, list[int]] = {}
    for index, part in enumerate(block.parts):
        parts_of.setdefault(part.target, []).append(index)
    return [_writer(target, parts, block, rows[target], unmasked) for target, parts in parts_of.items()]


def _writer(target: Target, parts: Sequence[int], block: Block, rows: int, unmasked: frozenset[str]) -> Writer:
    columns: list[tuple[slice, int]] = []
    scalars: list[tuple[int, int]] = []
    masks: dict[int, list[int]] = {}
    for index in parts:
        part, start = block.parts[index], block.slices[index].start
        for slot in range(part.field.slot, part.field.slot + part.field.width):
            if part.count == rows:
                columns.append((slice(start, start + part.count), slot))
            else:
                scalars.append((start, slot))
            start += part.count
        if part.field.mask is not None and part.field.key not in unmasked:
            masks.setdefault(part.field.mask, []).append(index)
    frozen = tuple((slot, tuple(owners)) for slot, owners in masks.items())
    return Writer(target, tuple(columns), tuple(scalars), frozen)


def _write_columns(array: FloatArray, values: FloatArray, columns: Sequence[tuple[slice, int]]) -> None:
    if len(array) <= _STRIPE:
        for where, slot in columns:
            array[:, slot] = values[where]
        return
    for start in range(0, len(array), _STRIPE):
        stripe = array[start : start + _STRIPE]
        for where, slot in columns:
            first = where.start + start
            stripe[:, slot] = values[first : first + len(stripe)]


def _joint(states: Sequence[float | None]) -> float | None:
    if 0.0 in states:
        return 0.0
    return None if None in states else 1.0


def _all_present(
    block: Block, present: BoolArray, owners: Sequence[int], states: Sequence[float | None]
) -> BoolArray:
    partial = [present[block.slices[part]][: block.parts[part].count] for part in owners if states[part] is None]
    result: BoolArray = partial[0]
    for other in partial[1:]:
        result = result & other
    return result
