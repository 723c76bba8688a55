"""The attended edges of a stage as index lists: scores, softmax segments, bag entries (``inference.blocks``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EdgeType
from tamiyo_stream.graph.structures import IndexArray
from tamiyo_stream.inference.blocks import PIECE_ROWS, AttentionBlock, AttentionPlan, Bags, Role, in_pieces
from tamiyo_stream.inference.relation_edges import Group, Several, distinct
from tamiyo_stream.model.network import EXPLAINED_TYPES


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """Attended edges of one relation that are made in one way, ``start`` the first among the stage's."""

    edge_type: EdgeType
    several: Several
    projected: bool
    start: int


def attended(groups: Mapping[EdgeType, Group]) -> list[Attended]:
    """Return what ``groups`` attend to, explained source types first, each with its place in the stage."""
    found: list[Attended] = []
    start = 0
    order = sorted(groups, key=lambda edge_type: edge_type[0] not in EXPLAINED_TYPES)
    for edge_type in order:
        for several, projected in ((groups[edge_type].aggregated, False), (groups[edge_type].projected, True)):
            if len(several):
                found.append(Attended(edge_type, several, projected, start))
                start += len(several.source)
    return found


def attention_block(part: Attended, sources: int, heads: int) -> AttentionBlock:
    """Return the block of ``part``; its source type has ``sources`` nodes."""
    several, entries = part.several, entry_of(part.several, heads)
    index = np.empty_like(entries)
    nodes, counts, rows = None, several.counts * heads, PIECE_ROWS
    if part.projected:
        nodes, local = distinct(several.source, sources)
        index[entries] = (local[:, None] * heads + np.arange(heads)).ravel()
        nodes = None if len(nodes) == sources else nodes
    else:
        index[entries] = np.repeat(several.source, heads)
        counts, rows = np.repeat(several.counts, heads), max(PIECE_ROWS // heads, 1) * heads
    return AttentionBlock(
        part.edge_type,
        rows=len(several),
        edges=slice(part.start, part.start + len(several.source)),
        projected=part.projected,
        sources=None if nodes is None else torch.from_numpy(nodes),
        bags=in_pieces(index, counts, rows=rows),
    )


def entry_of(several: Several, heads: int) -> IndexArray:
    """Return [E * heads] the place of (edge, head) in the order target, head, edge."""
    first = several.offsets[several.row]
    within = np.arange(len(several.source)) - first
    per_head = several.counts[several.row]
    entries: IndexArray = (first[:, None] * heads + np.arange(heads) * per_head[:, None] + within[:, None]).ravel()
    return entries


def attention_plan(
    parts: Sequence[Attended], node_counts: Mapping[str, int], edge_counts: Mapping[EdgeType, int], heads: int
) -> AttentionPlan | None:
    """Return the plan of ``parts`` as :func:`attended` gives them; None where there are none."""
    if not parts:
        return None
    roles = _roles(parts)
    bases = _bases(roles, node_counts)

    def score_rows(part: Attended, nodes: IndexArray, *, is_source: bool) -> IndexArray:
        name = part.edge_type[0 if is_source else 2]
        column = roles[name].index(Role(part.edge_type, is_source))
        return bases[name] + nodes * len(roles[name]) + column

    counts = np.concatenate([part.several.counts for part in parts])
    order = []
    for part in parts:
        entries = entry_of(part.several, heads)
        flat = np.empty_like(entries)
        flat[entries] = np.arange(len(entries)) + part.start * heads
        order.append(flat)
    mass = mass_bases(node_counts)
    mass_rows = [
        part.several.source + mass[part.edge_type[0]] for part in parts if part.edge_type[0] in EXPLAINED_TYPES
    ]
    return AttentionPlan(
        roles=roles,
        of_source=_joined([score_rows(part, part.several.source, is_source=True) for part in parts]),
        of_target=_joined(
            [
                score_rows(part, np.repeat(part.several.targets, part.several.counts), is_source=False)
                for part in parts
            ]
        ),
        attributes=_attributes(parts, edge_counts),
        attribute_bags=_attribute_bags(parts),
        bag=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        bags=Bags(torch.arange(int(counts.sum())), torch.from_numpy(np.cumsum(counts) - counts)),
        order=_joined(order),
        explained=sum(map(len, mass_rows)),
        mass_row=_joined(mass_rows),
    )


def _roles(parts: Sequence[Attended]) -> dict[str, tuple[Role, ...]]:
    roles: dict[str, dict[Role, None]] = {name: {} for name in NODES}
    for part in parts:
        roles[part.edge_type[0]][Role(part.edge_type, is_source=True)] = None
        roles[part.edge_type[2]][Role(part.edge_type, is_source=False)] = None
    return {name: tuple(found) for name, found in roles.items() if found}


def _bases(roles: Mapping[str, tuple[Role, ...]], node_counts: Mapping[str, int]) -> dict[str, int]:
    bases, base = {}, 0
    for name, columns in roles.items():
        bases[name] = base
        base += node_counts[name] * len(columns)
    return bases


def _attributes(parts: Sequence[Attended], edge_counts: Mapping[EdgeType, int]) -> dict[EdgeType, Tensor | None]:
    positions: dict[EdgeType, list[IndexArray]] = {}
    for part in parts:
        positions.setdefault(part.edge_type, []).append(part.several.position)
    joined = {edge_type: np.concatenate(arrays) for edge_type, arrays in positions.items()}
    return {
        edge_type: None if _is_every(array, edge_counts[edge_type]) else torch.from_numpy(array)
        for edge_type, array in joined.items()
    }


def _attribute_bags(parts: Sequence[Attended]) -> Bags:
    index, counts, first_rows, row = [], [], {}, 0
    for part in parts:
        width, edges = BY_EDGE_TYPE[part.edge_type].width, len(part.several.source)
        if part.edge_type not in first_rows:
            first_rows[part.edge_type] = row
            row += width
        index.append(np.tile(np.arange(width) + first_rows[part.edge_type], edges))
        counts.append(np.full(edges, width))
    joined = np.concatenate(counts)
    return Bags(_joined(index), torch.from_numpy(np.cumsum(joined) - joined))


def _is_every(positions: IndexArray, count: int) -> bool:
    return len(positions) == count and bool((np.diff(positions, prepend=-1) == 1).all())


def mass_bases(node_counts: Mapping[str, int]) -> dict[str, int]:
    """Return the first row of each explained type in a mass vector over all of them."""
    bases, base = {}, 0
    for name in EXPLAINED_TYPES:
        bases[name] = base
        base += node_counts[name]
    return bases


def _joined(arrays: Sequence[IndexArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays) if arrays else np.empty(0, np.int64))
