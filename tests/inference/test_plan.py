"""A plan makes each message once, in the cheaper order, and gives every node those that are meant for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EDGE_TYPES, EdgeType
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS
from tamiyo_stream.inference.blocks import (
    PIECE_ROWS,
    AttentionBlock,
    Block,
    MaxBlock,
    ProjectedBlock,
    RowsBlock,
    in_pieces,
)
from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.plan import ExecutionPlan, build_plan
from tests.inference.samples import graph_of, plan_of, sampled
from tests.model.samples import with_edges

CONNECTS = ("layer", "connects", "layer")
TUNES = ("parameter", "tunes", "layer")
#: Into five targets from two sources; into one target from two sources.
EDGES = ([(source, target) for target in range(5) for source in (0, 1)], [(0, 2), (1, 2)])
INFLUENCES = ("activation", "influences", "layer")


def plan_for(edge_type: EdgeType, pairs: list[tuple[int, int]], ranks: list[int] | None = None) -> ExecutionPlan:
    """The plan of a graph with ten nodes of each type and these edges, sorted by target."""
    given_ranks = None if ranks is None else {edge_type: torch.tensor(ranks)}
    index = torch.tensor(pairs, dtype=torch.long).T.reshape(2, -1).contiguous()
    return build_plan({edge_type: index}, dict.fromkeys(NODES, 10), 2, ranks=given_ranks)


def blocks(plan: ExecutionPlan, stage: int) -> tuple[Block, ...]:
    return plan.stages[stage].blocks["layer"]


def received(plan: ExecutionPlan, stage: int) -> list[list[int]]:
    """The message rows that each layer receives."""
    (bags,) = plan.stages[stage].received["layer"]
    ends = [*bags.offsets.tolist()[1:], len(bags.index)]
    return [bags.index[start:end].tolist() for start, end in zip(bags.offsets.tolist(), ends, strict=True)]


@pytest.mark.parametrize("stage", range(4))
def test_targets_with_the_same_only_neighbour_share_a_message(stage) -> None:
    plan = plan_for(TUNES, [(4, 0), (2, 3), (4, 5)])
    (block,) = blocks(plan, stage)
    assert isinstance(block, RowsBlock)
    assert block.rows == 2
    assert block.bags is not None
    assert block.bags[0].index.tolist() == [2, 4]
    assert received(plan, stage) == [[1], [], [], [0], [], [1], [], [], [], []]


def test_where_every_source_has_such_a_target_nothing_is_gathered() -> None:
    (block,) = blocks(plan_for(TUNES, [(9 - node, node) for node in range(10)]), 0)
    assert (block.rows, block.bags) == (10, None)


def test_a_mean_is_taken_before_the_projection() -> None:
    (block,) = blocks(plan_for(CONNECTS, [(1, 0), (2, 0), (3, 4)]), 0)
    assert isinstance(block, RowsBlock)
    assert block.bags is not None
    assert block.bags[0].index.tolist() == [3, 1, 2]
    assert block.bags[0].offsets.tolist() == [0, 1]
    assert block.bags[0].weights is not None
    assert block.bags[0].weights.tolist() == [1, 0.5, 0.5]


def test_fewer_sources_than_targets_are_projected_first() -> None:
    pairs = [(source, target) for target in range(4) for source in (2, 7)]
    (averaged,), (attended,) = (blocks(plan_for(TUNES, pairs), stage) for stage in (0, 3))
    assert isinstance(averaged, ProjectedBlock)
    assert averaged.sources is not None
    assert averaged.sources.tolist() == [2, 7]
    assert averaged.bags[0].index.tolist() == [0, 1] * 4
    assert isinstance(attended, AttentionBlock)
    assert attended.projected
    assert attended.bags[0].index.tolist()[:4] == [
        0,
        2,
        1,
        3,
    ]  # target, head, edge; two heads of a row side by side


def test_attention_to_more_sources_than_targets_is_summed_first() -> None:
    (block,) = blocks(plan_for(CONNECTS, [(1, 0), (2, 0), (3, 0)]), 2)
    assert isinstance(block, AttentionBlock)
    assert not block.projected
    assert block.bags[0].index.tolist() == [1, 2, 3, 1, 2, 3]
    assert block.bags[0].offsets.tolist() == [0, 3]


def test_as_many_sources_as_targets_are_aggregated_first() -> None:
    plan = plan_for(CONNECTS, [(1, 0), (2, 0), (1, 3), (2, 3)])
    (averaged,), (attended,) = blocks(plan, 0), blocks(plan, 2)
    assert isinstance(averaged, RowsBlock)
    assert isinstance(attended, AttentionBlock)
    assert not attended.projected


def test_each_graph_of_a_batch_chooses_for_itself() -> None:
    """The first has fewer sources than targets, the second not."""
    few, many = graph_of("crowded"), graph_of("every relation")
    kinds = []
    first, second = with_edges(few, {TUNES: EDGES[0]}), with_edges(many, {TUNES: EDGES[1]})
    for graphs in ([first], [second], [first, second]):
        plan = plan_of(collate(graphs))
        kinds.append([type(block) for block in plan.stages[0].blocks["layer"]])
    assert kinds == [[ProjectedBlock], [RowsBlock], [RowsBlock, ProjectedBlock]]


def test_a_maximum_is_a_tree_of_pairs() -> None:
    (block,) = blocks(plan_for(INFLUENCES, [(1, 0), (2, 0), (3, 0), (4, 6), (5, 6)]), 1)
    assert isinstance(block, MaxBlock)
    values = torch.arange(10.0)
    for left, right in block.levels:
        values = torch.maximum(values[left], values[right])
    assert values.tolist() == [3, 5]


def test_nothing_is_attended_where_there_is_one_neighbour() -> None:
    plan = plan_for(CONNECTS, [(1, 0), (1, 2)])
    assert plan.stages[2].attention is None
    assert plan.sole_mass.tolist() == [0, 4, *[0] * 18]  # two edges in two stages, layers then seeds


def test_the_last_stage_updates_only_what_heads_read() -> None:
    plan = plan_of(collate([graph_of("every relation")]))
    assert set(plan.stages[2].blocks) == set(NODES)
    assert set(plan.stages[3].blocks) == {"layer", "seed", "blueprint"}


def test_without_ranks_stages_of_a_kind_have_one_plan() -> None:
    plan = plan_for(CONNECTS, [(1, 0)])
    assert plan.stages[0] is plan.stages[1]


def test_each_stage_uses_the_edges_below_its_cap() -> None:
    ranks = list(range(30))[::-1]
    plan = plan_for(CONNECTS, [(source % 10, 0) for source in range(30)], ranks)
    entries = []
    for stage in range(4):
        (block,) = blocks(plan, stage)
        assert isinstance(block, (RowsBlock, AttentionBlock))
        assert block.bags is not None
        entries.append(len(block.bags[0].index) // (1 if stage < 2 else 2))
    assert entries == list(NEIGHBOUR_CAPS)
    attention = plan.stages[2].attention
    assert attention is not None
    assert attention.attributes[CONNECTS].tolist() == list(range(25, 30))


def test_pieces_have_a_bounded_number_of_rows() -> None:
    plan = plan_of(collate([graph_of("many pieces")]))
    for stage in plan.stages:
        every = [block.bags for of_type in stage.blocks.values() for block in of_type if hasattr(block, "bags")]
        for bags in [*every, *stage.received.values()]:
            assert all(piece.rows <= PIECE_ROWS for piece in bags or ())
    assert len(plan.stages[0].received["layer"]) == 2


def test_a_plan_moves_to_a_device_as_a_whole() -> None:
    plan = plan_of(collate([sampled(graph_of("every relation")), graph_of("wide")]))
    moved = plan.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(plan)} == {"cpu"}
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert [tensor.shape for tensor in tensors_of(moved)] == [tensor.shape for tensor in tensors_of(plan)]
    assert plan.to(torch.device("cpu")) is plan


def tensors_of(part: Any) -> list[torch.Tensor]:
    """Every tensor within a plan."""
    if isinstance(part, torch.Tensor):
        return [part]
    if dataclasses.is_dataclass(part):
        part = [getattr(part, item.name) for item in dataclasses.fields(part)]
    elif isinstance(part, dict):
        part = list(part.values())
    return [tensor for each in part for tensor in tensors_of(each)] if isinstance(part, (list, tuple)) else []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 7))
def test_pieces_laid_one_after_the_other_are_the_bags(counts, rows) -> None:
    index = np.arange(sum(counts))
    bags = []
    for piece in in_pieces(index, np.array(counts), rows=rows):
        ends = [*piece.offsets.tolist()[1:], len(piece.index)]
        bags += [piece.index[start:end].tolist() for start, end in zip(piece.offsets, ends, strict=True)]
    ends = np.cumsum(counts)
    assert bags == [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), shape=st.sampled_from(["every relation", "crowded", "one to one"]))
def test_every_node_receives_a_message_of_each_relation_into_it(seed, shape) -> None:
    graph = sampled(graph_of(shape, seed), seed)
    plan = plan_of(collate([graph]))
    for stage in plan.stages:
        for name, pieces in stage.received.items():
            degrees = sum(
                (np.diff(graph.topology.edges[key].indptr) > 0).astype(int) for key in EDGE_TYPES if key[2] == name
            )
            counts = [np.diff([*piece.offsets.tolist(), len(piece.index)]) for piece in pieces]
            np.testing.assert_array_equal(np.concatenate(counts), degrees)
