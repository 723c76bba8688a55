"""Builds the plan of one stage from its relations' edges, block by block (``inference.blocks``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch

from tamiyo_stream.graph.relations import EdgeType, aggregation_of
from tamiyo_stream.graph.structures import FloatArray, IndexArray
from tamiyo_stream.inference.attention_plan import Attended, attended, attention_block, attention_plan
from tamiyo_stream.inference.blocks import Bags, Block, MaxBlock, ProjectedBlock, RowsBlock, StagePlan, in_pieces
from tamiyo_stream.inference.relation_edges import Group, Several, distinct


class StageBuilder:
    """Collects the blocks of a stage; ``node_counts`` by type."""

    def __init__(self, node_counts: Mapping[str, int]) -> None:
        self._counts = node_counts
        self._blocks: defaultdict[str, list[Block]] = defaultdict(list)
        self._received: defaultdict[str, _Received] = defaultdict(_Received)

    def sage(self, groups: Mapping[EdgeType, Group]) -> StagePlan:
        """Return the plan of a GraphSAGE stage."""
        for edge_type, group in groups.items():
            if aggregation_of(edge_type) == "max":
                self._add_rows(edge_type, group, None)
                self._add_max(edge_type, group.aggregated)
            else:
                self._add_rows(edge_type, group, group.aggregated)
                self._add_projected(edge_type, group.projected)
        return self._plan()

    def gat(self, groups: Mapping[EdgeType, Group], edge_counts: Mapping[EdgeType, int], heads: int) -> StagePlan:
        """Return the plan of a GAT stage; ``edge_counts``: edges in each relation's list."""
        parts = attended(groups)
        by_relation: defaultdict[EdgeType, list[Attended]] = defaultdict(list)
        for part in parts:
            by_relation[part.edge_type].append(part)
        for edge_type, group in groups.items():
            self._add_rows(edge_type, group, None)
            for part in by_relation[edge_type]:
                self._add(attention_block(part, self._counts[edge_type[0]], heads), part.several.targets)
        plan = self._plan()
        return StagePlan(plan.blocks, plan.received, attention_plan(parts, self._counts, edge_counts, heads))

    def _add(self, block: Block, targets: IndexArray, row: IndexArray | None = None) -> None:
        """Append ``block``; ``row``: its message that each of ``targets`` receives, None = one each, in order."""
        name = block.edge_type[2]
        self._received[name].add(block.rows, targets, row)
        self._blocks[name].append(block)

    def _add_rows(self, edge_type: EdgeType, group: Group, averaged: Several | None) -> None:
        """Messages of sole sources and of averages, in one block unless the sources are simply all nodes."""
        sole = group.sole
        everything = 0 < len(sole.sources) == self._counts[edge_type[0]]
        if everything:
            self._add(RowsBlock(edge_type, len(sole.sources), None), sole.targets, sole.row)
        rows = _Rows()
        if len(sole.sources) and not everything:
            rows.add(sole.sources, np.ones_like(sole.sources), sole.targets, sole.row)
        if averaged is not None and len(averaged):
            rows.add(averaged.source, averaged.counts, averaged.targets, np.arange(len(averaged)))
        if rows.count:
            self._add(RowsBlock(edge_type, rows.count, rows.bags()), *rows.received())

    def _add_max(self, edge_type: EdgeType, several: Several) -> None:
        if len(several):
            self._add(MaxBlock(edge_type, len(several), _levels(several)), several.targets)

    def _add_projected(self, edge_type: EdgeType, several: Several) -> None:
        if not len(several):
            return
        count = self._counts[edge_type[0]]
        nodes, index = distinct(several.source, count)
        bags = in_pieces(index, several.counts, _mean_weights(several.counts))
        sources = None if len(nodes) == count else torch.from_numpy(nodes)
        self._add(ProjectedBlock(edge_type, len(several), sources, bags), several.targets)

    def _plan(self) -> StagePlan:
        return StagePlan(
            blocks={name: tuple(blocks) for name, blocks in self._blocks.items()},
            received={name: received.bags(self._counts[name]) for name, received in self._received.items()},
        )


class _Rows:
    """Bags of source nodes, and which targets receive them."""

    def __init__(self) -> None:
        self.count = 0
        self._index: list[IndexArray] = []
        self._counts: list[IndexArray] = []
        self._targets: list[IndexArray] = []
        self._rows: list[IndexArray] = []

    def add(self, index: IndexArray, counts: IndexArray, targets: IndexArray, rows: IndexArray) -> None:
        """Append bags; each of ``targets`` receives the one of ``rows`` among them."""
        self._rows.append(rows + self.count)
        self._targets.append(targets)
        self._index.append(index)
        self._counts.append(counts)
        self.count += len(counts)

    def bags(self) -> tuple[Bags, ...]:
        counts = np.concatenate(self._counts)
        weights = _mean_weights(counts) if (counts > 1).any() else None
        return in_pieces(np.concatenate(self._index), counts, weights)

    def received(self) -> tuple[IndexArray, IndexArray]:
        return np.concatenate(self._targets), np.concatenate(self._rows)


class _Received:
    """Which message rows each node of a target type receives."""

    def __init__(self) -> None:
        self._rows = 0
        self._targets: list[IndexArray] = []
        self._messages: list[IndexArray] = []

    def add(self, rows: int, targets: IndexArray, row: IndexArray | None) -> None:
        self._messages.append((np.arange(rows) if row is None else row) + self._rows)
        self._targets.append(targets)
        self._rows += rows

    def bags(self, nodes: int) -> tuple[Bags, ...]:
        targets = np.concatenate(self._targets)
        order = np.argsort(targets, kind="stable")
        return in_pieces(np.concatenate(self._messages)[order], np.bincount(targets, minlength=nodes))


def _mean_weights(counts: IndexArray) -> FloatArray:
    return np.repeat((1 / counts).astype(np.float32), counts)


def _levels(several: Several) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return the pairs of rows whose maxima, level by level, reduce each target's neighbours to one row."""
    items, counts = several.source, several.counts
    levels = []
    while True:
        pairs = (counts + 1) // 2
        first = np.repeat(np.cumsum(counts) - counts, pairs)
        within = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        left = first + 2 * within
        right = np.minimum(left + 1, np.repeat(np.cumsum(counts), pairs) - 1)
        levels.append((torch.from_numpy(items[left]), torch.from_numpy(items[right])))
        if pairs.max() == 1:
            return tuple(levels)
        items, counts = np.arange(pairs.sum()), pairs
