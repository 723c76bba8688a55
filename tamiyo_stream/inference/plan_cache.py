"""Execution plans by structure, built off the step path and kept within a bound (design §8).

Whoever prepares a topology builds its plan. The plan of a batch is one over all its graphs. Where the same graphs
have not met before it is built at once if that pays within the same step. Else they are evaluated one by one, and
the combination is noted, to be built in the background for the next time. Safe to use from several threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from tamiyo_stream.graph.structures import Topology

#: Edges in all plans of single graphs, and as many in those of combinations, that are kept. A plan takes 130 to
#: 310 bytes per edge, so this bounds each kind to about 300 MB.
MAX_EDGES = 1_000_000
#: Plans kept of each kind, however small.
MAX_PLANS = 1024
#: Combinations noted for building; further ones are noted when they meet again.
MAX_WANTED = 16
#: Edges whose plan takes as long to build as the fixed part of a forward, which each further graph of a batch
#: saves. Measured on one core: 6 ms and 1 ms per 4500 edges, against 12 ms and what depends on the size.
EDGES_PER_FORWARD = 50_000

P = TypeVar("P")
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanStatistics:
    """Counts since the start, and what is kept.

    Attributes:
        hits: batches whose plan was there.
        misses: batches whose graphs had not met before.
        built_at_once: of these, the ones whose plan was built at once; the others were evaluated one by one.
        built_late: plans of single graphs built on the step path, because nobody had prepared them.
        prepared: plans built before they were needed.
        plans: plans kept, of single graphs and of combinations. edges: edges in them.
    """

    hits: int = 0
    misses: int = 0
    built_at_once: int = 0
    built_late: int = 0
    prepared: int = 0
    plans: int = 0
    edges: int = 0


class PlanCache(Generic[P]):
    """Plans of topologies and of their combinations; ``build`` returns the plan of topologies as one graph."""

    def __init__(self, build: Callable[[Sequence[Topology]], P]) -> None:
        self._build = build
        self._single: _Shelf[P] = _Shelf()
        self._combined: _Shelf[P] = _Shelf()
        self._wanted: OrderedDict[Key, tuple[Topology, ...]] = OrderedDict()
        self._lock = Lock()
        self._hits = self._misses = self._built_at_once = self._built_late = self._prepared = 0

    def __contains__(self, topology: Topology) -> bool:
        """Whether the plan of ``topology`` is there; never blocks."""
        return topology.structure_hash in self._single

    @property
    def wants(self) -> bool:
        """Whether combinations are noted for :meth:`prepare_combinations`; never blocks."""
        return bool(self._wanted)

    def prepare(self, topology: Topology) -> None:
        """Build the plan of ``topology`` where it is missing."""
        if topology not in self:
            plan = self._build([topology])
            with self._lock:
                self._prepared += 1
                self._single.put(topology.structure_hash, plan, topology.num_edges)

    def prepare_combinations(self) -> None:
        """Build the plans of the combinations that are noted."""
        while True:
            with self._lock:
                if not self._wanted:
                    return
                key, topologies = self._wanted.popitem(last=False)
            plan = self._build(topologies)
            with self._lock:
                self._prepared += 1
                self._combined.put(key, plan, _edges(topologies))

    def plan_of(self, topology: Topology) -> P:
        """Return the plan of one topology, built now if nobody has prepared it."""
        with self._lock:
            found = self._single.get(topology.structure_hash)
        if found is not None:
            return found
        plan = self._build([topology])
        with self._lock:
            self._built_late += 1
            self._single.put(topology.structure_hash, plan, topology.num_edges)
        return plan

    def plan_together(self, topologies: Sequence[Topology]) -> P | None:
        """Return the plan of ``topologies`` as one graph, in this order.

        Returns:
            None where there is none and building it now would take longer than evaluating the graphs one by one.
        """
        if len(topologies) == 1:
            known = topologies[0] in self
            self._count(hit=known)
            return self.plan_of(topologies[0])
        key = tuple(topology.structure_hash for topology in topologies)
        with self._lock:
            found = self._combined.get(key)
        self._count(hit=found is not None)
        if found is None and _pays_at_once(topologies):
            found = self._build(topologies)
            with self._lock:
                self._built_at_once += 1
                self._combined.put(key, found, _edges(topologies))
        elif found is None and len(self._wanted) < MAX_WANTED:
            with self._lock:
                self._wanted[key] = tuple(topologies)
        return found

    def statistics(self) -> PlanStatistics:
        """Return the counts and what is kept."""
        with self._lock:
            return PlanStatistics(
                hits=self._hits,
                misses=self._misses,
                built_at_once=self._built_at_once,
                built_late=self._built_late,
                prepared=self._prepared,
                plans=len(self._single) + len(self._combined),
                edges=self._single.edges + self._combined.edges,
            )

    def _count(self, *, hit: bool) -> None:
        with self._lock:
            self._hits += hit
            self._misses += not hit


def _edges(topologies: Sequence[Topology]) -> int:
    return sum(topology.num_edges for topology in topologies)


def _pays_at_once(topologies: Sequence[Topology]) -> bool:
    """Whether building the plan takes less than evaluating the graphs together saves."""
    return _edges(topologies) <= EDGES_PER_FORWARD * (len(topologies) - 1.5)


class _Shelf(Generic[P]):
    """Plans by key, the least recently used leaving first; the newest always stays."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, tuple[P, int]] = OrderedDict()
        self.edges = 0

    def __len__(self) -> int:
        return len(self._plans)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._plans

    def get(self, key: Hashable) -> P | None:
        if key not in self._plans:
            return None
        self._plans.move_to_end(key)
        return self._plans[key][0]

    def put(self, key: Hashable, plan: P, edges: int) -> None:
        self.edges += edges - self._plans.pop(key, (plan, 0))[1]
        self._plans[key] = (plan, edges)
        while len(self._plans) > 1 and (self.edges > MAX_EDGES or len(self._plans) > MAX_PLANS):
            _, (_, freed) = self._plans.popitem(last=False)
            self.edges -= freed
