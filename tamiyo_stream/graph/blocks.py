"""Blocks: raw values of many nodes or edges become feature slots and masks, vectorised (design §6).

A block's raw matrix is [rows, N] float32 with NaN for missing, one row per channel (one per label of a multi-hot),
ordered so that every transform works on one contiguous slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from tamiyo_stream.graph.features import Kind, Total, Transform
from tamiyo_stream.graph.registries import CAPACITIES
from tamiyo_stream.graph.structures import FloatArray
from tamiyo_stream.runs.norms import Z_LIMIT, moments, prior_moments
from tamiyo_stream.runs.state import EwmaNorm

BoolArray = npt.NDArray[np.bool_]

#: Rows written at a time: a stripe of 128-wide rows stays in the second-level cache while its columns are written.
_STRIPE = 1024


@dataclass(frozen=True, slots=True)
class Field:
    """One channel or edge attribute, as a block sees it. ``key`` is its coverage key."""

    key: str
    sources: tuple[str, ...]
    kind: Kind
    transform: Transform
    default: float
    vocabulary: str
    labels: tuple[str, ...]
    prior: str
    total: float | Total
    slot: int
    mask: int | None
    mandatory: bool
    counted: bool

    @property
    def rows(self) -> int:
        """Rows of the raw matrix."""
        return len(self.labels) or 1

    @property
    def group(self) -> int:
        """Position among the transforms; see :class:`Block`."""
        if self.kind is Kind.CATEGORY:
            return 5
        return _GROUPS[self.transform]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Values [rows, N], all finite, and presence [rows, N]; None: everything is present."""

    values: FloatArray
    present: BoolArray | None


_GROUPS = {
    Transform.LOG1P_Z: 0,
    Transform.Z: 1,
    Transform.EWMA: 2,
    Transform.CLAMP01: 3,
    Transform.RATIO: 4,
    Transform.NONE: 6,
}


class Block:
    """Fields that are filled, encoded and written together.

    Rows are ordered: log1p+z, z by a fixed prior, z by moving statistics, clamped, ratios, categories, as they
    are.
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields = tuple(sorted(fields, key=lambda entry: entry.group))
        starts = list(accumulate((entry.rows for entry in self.fields), initial=0))
        self.rows = starts[-1]
        self.slices = tuple(slice(*pair) for pair in pairwise(starts))
        self.keys = tuple(entry.key for entry in self.fields)
        self.mandatory = tuple(entry.mandatory for entry in self.fields)
        bounds = [self._start_of(group) for group in range(8)]
        self._log, _, self._ewma, clamp, ratio, self._category, plain = (slice(*pair) for pair in pairwise(bounds))
        self._scored = slice(0, self._ewma.stop)
        scored = [entry.prior for entry in self.fields if entry.group <= 2]
        self._means = np.array([[prior_moments(name)[0]] for name in scored], dtype=np.float32)
        self._inverse = np.array([[1.0 / prior_moments(name)[1]] for name in scored], dtype=np.float32)
        self._moving = [(row, scored[row]) for row in range(self._ewma.start, self._ewma.stop)]
        limits = ((clamp, 0.0, 1.0), (ratio, -Z_LIMIT, Z_LIMIT), (plain, -Z_LIMIT, Z_LIMIT))
        self._limited = [limit for limit in limits if limit[0].start != limit[0].stop]
        self._shares = [
            (rows.start, entry.total)
            for entry, rows in self._pairs()
            if entry.group in (3, 4) and entry.total != 1.0
        ]
        self._capacities = np.array(
            [[CAPACITIES[entry.vocabulary]] for entry in self.fields if entry.kind is Kind.CATEGORY],
            dtype=np.float32,
        )
        self._defaults = np.array(
            [[entry.default] for entry in self.fields for _ in range(entry.rows)], dtype=np.float32
        )
        self._firsts = np.array(starts[:-1], dtype=np.int64)
        self._slots = [
            (rows.start + i, entry.slot + i) for entry, rows in self._pairs() for i in range(entry.rows)
        ]
        self._masks = self._mask_rows()
        self._uncounted = [position for position, entry in enumerate(self.fields) if not entry.counted]
        self._complete = [1.0 if entry.counted else math.nan for entry in self.fields]
        self.absent = [0.0 if entry.counted else math.nan for entry in self.fields]

    @property
    def is_moving(self) -> bool:
        """Whether the values depend on the run's moving statistics."""
        return bool(self._moving)

    def _pairs(self) -> Iterable[tuple[Field, slice]]:
        return zip(self.fields, self.slices, strict=True)

    def _start_of(self, group: int) -> int:
        return sum(entry.rows for entry in self.fields if entry.group < group)

    def _mask_rows(self) -> list[tuple[int, list[int]]]:
        owners: dict[int, list[int]] = {}
        for entry, rows in self._pairs():
            if entry.mask is not None:
                owners.setdefault(entry.mask, []).append(rows.start)
        return list(owners.items())

    def empty(self, count: int) -> FloatArray:
        """Return a raw matrix for ``count`` nodes or edges with everything missing."""
        return np.full((self.rows, count), np.nan, dtype=np.float32)

    def encode(self, raw: FloatArray, norms: Mapping[str, EwmaNorm], totals: Mapping[Total, float]) -> Encoded:
        """Return finite values and presence. ``raw`` is left as it is.

        Args:
            raw: [rows, N]; NaN and ±inf are missing.
            norms: the run's moving statistics before this step.
            totals: the graph's totals that are not in the column itself; NaN = unknown, so the share is missing.
        """
        present = np.isfinite(raw)
        complete = bool(present.all())
        values: FloatArray = raw.copy() if complete else np.where(present, raw, np.float32(0.0))
        if self._log.stop:
            log = values[self._log]
            np.log1p(np.maximum(log, 0.0, out=log), out=log)
        if self._scored.stop:
            self._standardise(values[self._scored], norms)
        for row, total in self._shares:
            complete &= _share(values, present, row, _whole(total, values[row], totals))
        for part, low, high in self._limited:
            limited = values[part]
            np.minimum(np.maximum(limited, low, out=limited), high, out=limited)
        if self._category.start != self._category.stop:
            indices = values[self._category]
            known = (indices >= 1.0) & (indices < self._capacities)
            present[self._category] = known
            complete &= bool(known.all())
        if complete:
            return Encoded(values, None)
        np.copyto(values, self._defaults, where=~present)
        return Encoded(values, present)

    def _standardise(self, values: FloatArray, norms: Mapping[str, EwmaNorm]) -> None:
        means, inverse = self._means, self._inverse
        if self._moving and norms:
            means, inverse = means.copy(), inverse.copy()
            for row, name in self._moving:
                mean, std = moments(norms, name)
                means[row], inverse[row] = mean, 1.0 / std
        values -= means
        values *= inverse
        np.minimum(np.maximum(values, -Z_LIMIT, out=values), Z_LIMIT, out=values)

    def write(self, target: FloatArray, encoded: Encoded) -> None:
        """Write value and mask slots into ``target`` [N, width]; a single column of values goes to every row."""
        values, present = encoded.values, encoded.present
        masks = [(slot, None if present is None else _all_present(present, rows)) for slot, rows in self._masks]
        broadcast = values.shape[1] == 1
        for start in range(0, len(target), _STRIPE):
            stripe = target[start : start + _STRIPE]
            part = slice(None) if broadcast else slice(start, start + _STRIPE)
            for row, slot in self._slots:
                stripe[:, slot] = values[row, part]
            for slot, mask in masks:
                stripe[:, slot] = 1.0 if mask is None else mask[part]

    def tally(self, encoded: Encoded) -> list[float]:
        """Return the share present per field; fields that are always known give NaN (not observed)."""
        if encoded.present is None:
            return self._complete
        shares = np.count_nonzero(encoded.present, axis=1)[self._firsts] / max(encoded.present.shape[1], 1)
        result: list[float] = shares.tolist()
        for position in self._uncounted:
            result[position] = math.nan  # the one object, so that equal tallies compare equal
        return result


def _whole(total: float | Total, row: FloatArray, totals: Mapping[Total, float]) -> float:
    if total is Total.SUM:
        return float(np.abs(row).sum(dtype=np.float64))
    if total is Total.MAX:
        return float(np.abs(row).max(initial=0.0))
    return totals[total] if isinstance(total, Total) else float(total)


def _share(values: FloatArray, present: BoolArray, row: int, whole: float) -> bool:
    """Divide a row by its whole; return whether that is known. The share of nothing is nothing."""
    if math.isnan(whole):
        values[row] = 0.0
        present[row] = False
        return False
    if whole == 0.0:
        values[row] = 0.0
    else:
        values[row] /= np.float32(whole)
    return True


def _all_present(present: BoolArray, rows: list[int]) -> BoolArray:
    result: BoolArray = present[rows[0]]
    for row in rows[1:]:
        result = result & present[row]
    return result
