"""The execution plan: what a forward needs to know of a topology, worked out once (design §8).

What the parts mean stands in ``inference.blocks``. Every choice is made graph by graph, so that a graph's messages
are made in the same way alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.relations import EDGE_TYPES, EdgeType, aggregation_of
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS, FloatArray, IndexArray
from tamiyo_stream.inference.attention_plan import mass_bases
from tamiyo_stream.inference.blocks import StagePlan
from tamiyo_stream.inference.relation_edges import Group, split
from tamiyo_stream.inference.stage_plan import StageBuilder
from tamiyo_stream.model.network import EXPLAINED_TYPES, STAGES, StageKind


@dataclass(frozen=True, slots=True, eq=False)
class ExecutionPlan:
    """The four stages of a topology.

    ``sole_mass``: [N_layer + N_seed] attention mass of the edges that need no softmax, all stages together.
    """

    stages: tuple[StagePlan, ...] = field(repr=False)
    sole_mass: Tensor = field(repr=False)

    def to(self, device: torch.device) -> ExecutionPlan:
        """Return the plan on ``device``, itself if it is there."""
        if self.sole_mass.device == device:
            return self
        moved = {id(stage): _moved(stage, device) for stage in self.stages}
        return ExecutionPlan(tuple(moved[id(stage)] for stage in self.stages), self.sole_mass.to(device))


def build_plan(
    edge_index_dict: Mapping[EdgeType, Tensor],
    node_counts: Mapping[str, int],
    heads: int,
    *,
    ranks: Mapping[EdgeType, Tensor] | None = None,
    offsets: Mapping[str, IndexArray] | None = None,
) -> ExecutionPlan:
    """Return the plan of one graph, or of several as one.

    Args:
        edge_index_dict: [2, E_r] int64 on the CPU, sorted by target.
        node_counts: nodes by type; every type is a key.
        heads: attention heads.
        ranks: [E_r] rank of each edge, as in ``TamiyoGNN.forward``; types that are absent keep all edges.
        offsets: [B + 1] first node of each graph by node type; None: one graph.
    """
    builder = _PlanBuilder(edge_index_dict, node_counts, heads, ranks or {}, offsets)
    caps = NEIGHBOUR_CAPS if ranks else (None,) * len(STAGES)
    stages = tuple(builder.stage(kind, cap) for kind, cap in zip(STAGES, caps, strict=True))
    return ExecutionPlan(stages, torch.from_numpy(builder.sole_mass))


class _PlanBuilder:
    """Builds each distinct stage once: without ranks, stages of a kind have the same plan."""

    def __init__(
        self,
        edge_index_dict: Mapping[EdgeType, Tensor],
        node_counts: Mapping[str, int],
        heads: int,
        ranks: Mapping[EdgeType, Tensor],
        offsets: Mapping[str, IndexArray] | None,
    ) -> None:
        self._edges = {key: edge_index_dict[key].numpy() for key in EDGE_TYPES if key in edge_index_dict}
        self._counts = node_counts
        self._heads = heads
        self._ranks = {key: rank.numpy() for key, rank in ranks.items()}
        self._offsets = offsets or {name: np.array([0, count]) for name, count in node_counts.items()}
        self._mass_bases = mass_bases(node_counts)
        self._stages: dict[tuple[StageKind, int | None], StagePlan] = {}
        self.sole_mass: FloatArray = np.zeros(sum(node_counts[name] for name in EXPLAINED_TYPES), np.float32)

    def stage(self, kind: StageKind, cap: int | None) -> StagePlan:
        """Return the plan of a stage that uses edges of rank below ``cap``; count its unattended mass."""
        groups = {
            key: self._split(key, kind, cap)
            for key, edges in self._edges.items()
            if key[2] in kind.targets and edges.shape[1]
        }
        if kind.attends:
            self._count_sole(groups)
        if (kind, cap) not in self._stages:
            builder = StageBuilder(self._counts)
            totals = {key: edges.shape[1] for key, edges in self._edges.items()}
            plan = builder.gat(groups, totals, self._heads) if kind.attends else builder.sage(groups)
            self._stages[kind, cap] = plan
        return self._stages[kind, cap]

    def _split(self, key: EdgeType, kind: StageKind, cap: int | None) -> Group:
        source, target = self._edges[key]
        position = np.arange(len(source))
        if cap is not None and key in self._ranks:
            position = np.flatnonzero(self._ranks[key] < cap)
            source, target = source[position], target[position]
        graphs = self._offsets[key[0]], self._offsets[key[2]]
        may_project = kind.attends or aggregation_of(key) != "max"
        return split(source, target, position, graphs, may_project=may_project)

    def _count_sole(self, groups: Mapping[EdgeType, Group]) -> None:
        for key, group in groups.items():
            if key[0] in self._mass_bases:
                nodes = group.sole.sources[group.sole.row] + self._mass_bases[key[0]]
                self.sole_mass += np.bincount(nodes, minlength=len(self.sole_mass))


def _moved(value: Any, device: torch.device) -> Any:
    """Return ``value``, a part of a plan, with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: _moved(getattr(value, item.name), device) for item in fields(value) if item.init}
        return replace(value, **parts)
    if isinstance(value, Mapping):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return value
