"""Blocks: raw values of many nodes and edges become feature values and presence, a few large operations for all.

A block is one flat vector. Each part of it is a field of one node type or relation, and the parts lie in the order
of what is done to them, so that every transform works on one contiguous stretch whatever the number of fields
(design §6). NaN and ±inf are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from tamiyo_stream.graph.features import Kind, Total, Transform
from tamiyo_stream.graph.registries import CAPACITIES
from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.structures import FloatArray
from tamiyo_stream.runs.norms import Z_LIMIT, moments, prior_moments
from tamiyo_stream.runs.state import EwmaNorm

BoolArray = npt.NDArray[np.bool_]
#: What a field describes: a node type, or a forward relation.
Target = str | EdgeType


class Group(IntEnum):
    """Order of the parts in a block: first what is standardised, then all that ends within ±Z_LIMIT."""

    LOG1P_Z = 0
    Z = 1
    EWMA = 2
    RATIO = 3
    NONE = 4
    CLAMP01 = 5
    CATEGORY = 6


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
    def width(self) -> int:
        """Values per node or edge."""
        return len(self.labels) or 1

    @property
    def group(self) -> Group:
        """What is done to it."""
        return Group.CATEGORY if self.kind is Kind.CATEGORY else Group[self.transform.name]


@dataclass(frozen=True, slots=True)
class Part:
    """A field in a block: ``count`` values (per label), or 1 for all nodes or edges of ``target`` alike.

    ``total``: what the value is a share of; NaN where the graph does not tell, so the share is missing.
    """

    target: Target
    field: Field
    count: int
    total: float | Total

    @property
    def size(self) -> int:
        """Values in the block."""
        return self.field.width * self.count


class Block:
    """Parts that are encoded together.

    ``values``: [size] float32, the parts one behind the other as ``slices`` say. Fill in raw values, then call
    :meth:`encode`; no part may be empty.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(sorted(parts, key=lambda part: part.field.group))
        starts = list(accumulate((part.size for part in self.parts), initial=0))
        self.slices = tuple(slice(*pair) for pair in pairwise(starts))
        self.values: FloatArray = np.full(starts[-1], np.nan, dtype=np.float32)
        ends = [sum(part.size for part in self.parts if part.field.group <= group) for group in Group]
        self._log, self._scored, self._limited = ends[Group.LOG1P_Z], ends[Group.EWMA], ends[Group.NONE]
        self._clamped = slice(ends[Group.NONE], ends[Group.CLAMP01])
        self._category = slice(ends[Group.CLAMP01], ends[Group.CATEGORY])
        placed = list(zip(self.parts, self.slices, strict=True))
        self._shares = [
            (where, part.total)
            for part, where in placed
            if part.field.group in (Group.RATIO, Group.CLAMP01) and part.total != 1.0
        ]
        self._defaults = [(where, part.field.default) for part, where in placed if part.field.default]
        self._capacities = np.repeat(
            np.asarray([CAPACITIES[part.field.vocabulary] for part in self._of(Group.CATEGORY)], np.float32),
            [part.size for part in self._of(Group.CATEGORY)],
        )
        scored = [(where, prior_moments(part.field.prior)) for part, where in placed if where.stop <= self._scored]
        self._means: FloatArray = np.empty(self._scored, dtype=np.float32)
        self._inverse: FloatArray = np.empty(self._scored, dtype=np.float32)
        for where, (mean, std) in scored:
            self._means[where], self._inverse[where] = mean, 1.0 / std
        self._moving = [(where, part.field.prior) for part, where in placed if part.field.group is Group.EWMA]
        self._moments: list[tuple[float, float]] = []

    def _of(self, group: Group) -> list[Part]:
        return [part for part in self.parts if part.field.group is group]

    def encode(self, norms: Mapping[str, EwmaNorm]) -> BoolArray | None:
        """Turn the raw ``values`` into finite features; return presence [size], None where all is present.

        Args:
            norms: the run's moving statistics before this step.
        """
        values = self.values
        present = np.isfinite(values)
        complete = bool(present.all())
        if not complete:
            np.copyto(values, 0.0, where=~present)
        if self._log:
            log = values[: self._log]
            np.log1p(np.maximum(log, 0.0, out=log), out=log)
        if self._scored:
            self._standardise(values[: self._scored], norms)
        for where, total in self._shares:
            complete &= _share(values[where], present[where], total)
        if self._limited:
            limited = values[: self._limited]
            np.minimum(np.maximum(limited, -Z_LIMIT, out=limited), Z_LIMIT, out=limited)
        clamped = values[self._clamped]
        if len(clamped):
            np.minimum(np.maximum(clamped, 0.0, out=clamped), 1.0, out=clamped)
        if len(self._capacities):
            indices = values[self._category]
            known = (indices >= 1.0) & (indices < self._capacities)
            present[self._category] = known
            complete &= bool(known.all())
        if complete:
            return None
        missing = ~present
        np.copyto(values, 0.0, where=missing)
        for where, default in self._defaults:
            np.copyto(values[where], default, where=missing[where])
        return present

    def _standardise(self, values: FloatArray, norms: Mapping[str, EwmaNorm]) -> None:
        now = [moments(norms, name) for _, name in self._moving]
        if now != self._moments:
            for (where, _), (mean, std) in zip(self._moving, now, strict=True):
                self._means[where], self._inverse[where] = mean, 1.0 / std
            self._moments = now
        values -= self._means
        values *= self._inverse

    def counts(self, present: BoolArray | None) -> list[int]:
        """Return how many nodes or edges have each part; of several labels all are there or none."""
        if present is None:
            return [part.count for part in self.parts]
        return [
            int(np.count_nonzero(present[where.start : where.start + part.count]))
            for part, where in zip(self.parts, self.slices, strict=True)
        ]


def _share(values: FloatArray, present: BoolArray, total: float | Total) -> bool:
    """Divide ``values`` by their whole; return whether that is known. The share of nothing is nothing."""
    if total is Total.SUM:
        whole = float(np.abs(values).sum(dtype=np.float64))
    elif total is Total.MAX:
        whole = float(np.abs(values).max(initial=0.0))
    else:
        whole = float(total)
    if math.isnan(whole):
        present[:] = False
    if math.isnan(whole) or whole == 0.0:
        values[:] = 0.0
    else:
        values /= np.float32(whole)
    return not math.isnan(whole)


def states(block: Block, counts: Sequence[int]) -> list[float | None]:
    """Return per part what its mask is everywhere: 1.0 or 0.0; None where it differs from node to node."""
    return [
        1.0 if count == part.count else None if count else 0.0
        for part, count in zip(block.parts, counts, strict=True)
    ]
