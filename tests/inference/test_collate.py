"""Graphs batch as PyG does it, and come apart again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.inference.collate import collate
from tests.inference.samples import graph_of, sampled
from tests.model.samples import random_step_graph, with_edges

SIZES = st.fixed_dictionaries(
    {name: st.integers(0, 4) for name in ("layers", "seeds", "activations", "parameters", "kernels", "contexts")}
)


def test_a_single_graph_shares_its_features() -> None:
    graph = random_step_graph(1)
    batch = collate([graph])
    graph.x_dict["layer"][0, 0] = 123.0
    assert batch.x_dict["layer"][0, 0] == 123.0


def test_read_only_features_are_copied() -> None:
    graph = random_step_graph(1)
    graph.x_dict["layer"].flags.writeable = False
    assert torch.equal(collate([graph]).x_dict["layer"], torch.from_numpy(graph.x_dict["layer"].copy()))


def test_relations_without_edges_are_left_out() -> None:
    connects = ("layer", "connects", "layer")
    batch = collate([with_edges(random_step_graph(1), {connects: [(0, 1)]}), random_step_graph(2, layers=0)])
    assert connects in batch.edge_index_dict
    assert ("seed", "monitors", "layer") not in batch.edge_index_dict


def test_no_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="graphs is empty"):
        collate([])


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4))
def test_every_graph_keeps_its_rows_and_edges(sizes: list[dict[str, int]]) -> None:
    graphs = [random_step_graph(number, **size) for number, size in enumerate(sizes)]
    batch = collate(graphs)
    assert batch.batch.bincount(minlength=len(graphs)).tolist() == [len(graph.layer_ids) for graph in graphs]
    for number, graph in enumerate(graphs):
        starts = {name: int(batch.offsets[name][number]) for name in NODES}
        for name, rows in graph.x_dict.items():
            np.testing.assert_array_equal(batch.x_dict[name][starts[name] : starts[name] + len(rows)], rows)
    for key, index in batch.edge_index_dict.items():
        expected = [
            (int(source + batch.offsets[key[0]][number]), int(target + batch.offsets[key[2]][number]))
            for number, graph in enumerate(graphs)
            for source, target in zip(
                graph.topology.edges[key].source, graph.topology.edges[key].target, strict=True
            )
        ]
        assert list(map(tuple, index.T.tolist())) == expected
        assert len(batch.edge_attr_dict[key]) == len(expected)


def test_ranks_are_those_of_the_sampled_graphs_and_zero_for_others() -> None:
    whole, chosen = graph_of("every relation"), sampled(graph_of("every relation", 1))
    batch = collate([whole, chosen])
    assert batch.edge_rank_dict.keys() == batch.edge_index_dict.keys()
    for key, ranks in batch.edge_rank_dict.items():
        edges = len(whole.topology.edges[key])
        assert not ranks[:edges].any()
        np.testing.assert_array_equal(ranks[edges:], chosen.topology.ranks[key])
    assert collate([whole]).edge_rank_dict == {}


def test_split_gives_every_graph_its_share() -> None:
    batch = collate([random_step_graph(1, seeds=2), random_step_graph(2, seeds=0), random_step_graph(3, seeds=1)])
    outputs = {
        "policy_logits": np.arange(3 * 32, dtype=np.float32).reshape(3, 32),
        "seed_scores": np.arange(3, dtype=np.float32),
    }
    shares = list(batch.split(outputs))
    assert [share["seed_scores"].tolist() for share in shares] == [[0, 1], [], [2]]
    assert [share["policy_logits"][0] for share in shares] == [0, 32, 64]
