"""Which policy answers which run while a new one is on trial, and when the trial is over (design §12).

Pure: no threads, no clock. ``inference.stage`` asks the :class:`Route` once per batch, so that a swap takes hold
between two batches; a :class:`Trial` counts what became of the decisions and says when to promote or to go back.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from math import ceil
from typing import Generic, TypeVar

from tamiyo_stream.graph.structures import Topology

E = TypeVar("E")
T = TypeVar("T")

#: Edges of the topologies that are remembered: as many as an engine keeps plans for.
MAX_EDGES = 1_000_000
#: Topologies remembered, however small.
MAX_TOPOLOGIES = 256
_HASHES = 2**32


@dataclass(frozen=True, slots=True)
class Route(Generic[E]):
    """Who answers: ``stable``, but ``trial`` for ``share`` (0..1) of the runs, chosen by the hash of their id.

    A run stays with its policy for as long as the route does: no run sees both in turn.
    """

    stable: E
    trial: E | None = None
    share: float = 1.0

    @property
    def engines(self) -> tuple[E, ...]:
        """Every engine that may be asked."""
        return (self.stable,) if self.trial is None else (self.stable, self.trial)

    def engine_of(self, run_id: str) -> E:
        """Return who answers this run."""
        if self.trial is not None and zlib.crc32(run_id.encode()) < self.share * _HASHES:
            return self.trial
        return self.stable

    def split(self, items: Sequence[T], run_ids: Sequence[str]) -> list[tuple[E, list[T]]]:
        """Return ``items`` by who answers their runs; their order within an engine stays."""
        groups: list[tuple[E, list[T]]] = []
        for engine in self.engines:
            group = [item for item, run_id in zip(items, run_ids, strict=True) if self.engine_of(run_id) is engine]
            groups += [(engine, group)] if group else []
        return groups


class Result(Enum):
    """What became of a graph: answered, answered too late, answered by another policy in its stead."""

    ANSWERED = "answered"
    LATE = "late"
    SPARED = "spared"
    NOT_FINITE = "not_finite"


class RollbackReason(StrEnum):
    """Why a policy was taken back."""

    NON_FINITE_OUTPUT = "non_finite_output"
    ERROR_RATE = "error_rate"
    DEADLINE_REGRESSION = "deadline_regression"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class TrialRules:
    """How a new policy proves itself.

    Attributes:
        decisions: of the new policy until it is promoted.
        share: of the runs that it answers until then.
        error_share: of ``decisions`` that may fail where the old policy could answer.
        late_share: of ``decisions`` that may be late beyond the share that was late before.
    """

    decisions: int = 100
    share: float = 1.0
    error_share: float = 0.02
    late_share: float = 0.05


class LateRecord:
    """The share of the newest ``length`` decisions that were late."""

    def __init__(self, length: int) -> None:
        self._late: deque[bool] = deque(maxlen=max(1, length))

    def add(self, *, late: bool) -> None:
        """Record one decision."""
        self._late.append(late)

    @property
    def share(self) -> float:
        """0 where nothing was decided."""
        return sum(self._late) / len(self._late) if self._late else 0.0


class Trial:
    """Counts the decisions of a policy on trial.

    Where the old policy fails on the same graph, or was as late before, nothing is held against the new one.

    Args:
        rules: of the trial. late_before: share of decisions that were late under the old policy.
    """

    def __init__(self, rules: TrialRules, *, late_before: float = 0.0) -> None:
        self.decisions = 0
        self._rules = rules
        self._errors_allowed = int(rules.error_share * rules.decisions)
        self._late_allowed = ceil((rules.late_share + late_before) * rules.decisions)
        self._errors = self._late = 0

    def record(self, result: Result) -> RollbackReason | None:
        """Count one decision; return why the policy must be taken back, None while it need not."""
        self.decisions += 1
        self._errors += result is Result.SPARED
        self._late += result is Result.LATE
        if result is Result.NOT_FINITE:
            return RollbackReason.NON_FINITE_OUTPUT
        if self._errors > self._errors_allowed:
            return RollbackReason.ERROR_RATE
        return RollbackReason.DEADLINE_REGRESSION if self._late > self._late_allowed else None

    @property
    def passed(self) -> bool:
        """Whether the policy has decided often enough."""
        return self.decisions >= self._rules.decisions


class RecentTopologies:
    """The topologies evaluated last, so that a new policy's plans are there before its first graph."""

    def __init__(self) -> None:
        self._topologies: OrderedDict[str, Topology] = OrderedDict()
        self._edges = 0

    def note(self, topology: Topology) -> None:
        """Remember ``topology`` as the newest; the oldest leave beyond the bounds, the newest stays."""
        name = topology.structure_hash
        if name not in self._topologies:
            self._topologies[name] = topology
            self._edges += topology.num_edges
        self._topologies.move_to_end(name)
        while len(self._topologies) > 1 and (self._edges > MAX_EDGES or len(self._topologies) > MAX_TOPOLOGIES):
            self._edges -= self._topologies.popitem(last=False)[1].num_edges

    def newest(self) -> tuple[Topology, ...]:
        """Return them, the newest first."""
        return tuple(reversed(self._topologies.values()))
