"""The edges of one relation, taken apart by how their messages are best made (``inference.blocks``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamiyo_stream.graph.structures import IndexArray


@dataclass(frozen=True, slots=True, eq=False)
class Sole:
    """Targets with one neighbour: its distinct ``sources`` [S]; ``targets`` [T]; ``row`` [T] among the sources."""

    sources: IndexArray
    targets: IndexArray
    row: IndexArray


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """Targets with more neighbours, E edges into M targets.

    ``targets``: [M]; ``counts``: [M] neighbours of each; ``source``: [E]; ``position``: [E] in the
    relation's list.
    """

    targets: IndexArray
    counts: IndexArray
    source: IndexArray
    position: IndexArray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def offsets(self) -> IndexArray:
        """First edge of each target."""
        return np.cumsum(self.counts) - self.counts

    @property
    def row(self) -> IndexArray:
        """Target of each edge, among the M."""
        return np.repeat(np.arange(len(self)), self.counts)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A relation's edges: targets with one neighbour, and those to aggregate before or after the projection."""

    sole: Sole
    aggregated: Several
    projected: Several


def split(
    source: IndexArray,
    target: IndexArray,
    position: IndexArray,
    graphs: tuple[IndexArray, IndexArray],
    *,
    may_project: bool,
) -> Group:
    """Take edges sorted by target apart.

    Args:
        source: [E] node of each edge.
        target: [E] node of each edge.
        position: [E] of each edge in the relation's list.
        graphs: [B + 1] first source and first target node of each graph. A graph whose several-neighbour targets
            have fewer distinct sources than they are is projected before it is aggregated.
        may_project: False: aggregate first in every graph.
    """
    starts = np.flatnonzero(np.diff(target, prepend=-1))
    counts = np.diff(starts, append=len(target))
    targets = target[starts]
    alone = counts == 1
    sources, row = distinct(source[starts[alone]], int(graphs[0][-1]))
    projects = np.zeros(len(targets), bool)
    if may_project and not alone.all():
        projects[~alone] = _projects(source[np.repeat(~alone, counts)], targets[~alone], graphs)

    def several(chosen: np.ndarray) -> Several:
        edges = np.repeat(chosen, counts)
        return Several(targets[chosen], counts[chosen], source[edges], position[edges])

    return Group(
        Sole(sources, targets[alone], row),
        aggregated=several(~alone & ~projects),
        projected=several(projects),
    )


def _projects(source: IndexArray, targets: IndexArray, graphs: tuple[IndexArray, IndexArray]) -> np.ndarray:
    """Return for each target whether its graph has fewer distinct sources than targets."""
    nodes, _ = distinct(source, int(graphs[0][-1]))
    graph_of_target = np.searchsorted(graphs[1], targets, side="right") - 1
    sources = np.bincount(np.searchsorted(graphs[0], nodes, side="right") - 1, minlength=len(graphs[0]))
    return (sources < np.bincount(graph_of_target, minlength=len(sources)))[graph_of_target]


def distinct(nodes: IndexArray, count: int) -> tuple[IndexArray, IndexArray]:
    """Return the distinct ones of ``nodes``, in order, and the place of each among them; ``count`` nodes exist."""
    present = np.zeros(count, bool)
    present[nodes] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[nodes]
