"""Padding changes sizes, never the rows of real nodes and graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.padding import Bucket, PaddedBatch, grid_size, pad
from tests.model.samples import forward, random_step_graph, with_edges

SIZES = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 20),
        "seeds": st.integers(0, 4),
        "activations": st.integers(0, 9),
        "parameters": st.integers(0, 4),
        "kernels": st.integers(0, 4),
        "contexts": st.integers(0, 1),
    }
)


@given(st.integers(0, 1_000_000))
def test_the_grid_holds_a_count_with_a_quarter_to_spare_at_most(count: int) -> None:
    size = grid_size(count)
    assert count <= size
    assert size <= max(count * 1.25 + 1, count)
    assert grid_size(size) == size


def test_the_grid_is_coarse() -> None:
    assert [grid_size(count) for count in (0, 1, 2, 6, 10, 13)] == [0, 1, 2, 7, 12, 15]
    assert len({grid_size(count) for count in range(100_001)}) < 60


def test_graphs_of_nearly_equal_sizes_share_a_bucket() -> None:
    first, second, third = (Bucket.of(collate([random_step_graph(1, layers=n)])) for n in (100, 101, 200))
    assert first == second != third


def test_every_node_type_has_room_for_a_dummy() -> None:
    batch = collate([random_step_graph(1, seeds=0, layers=14)])
    bucket = Bucket.of(batch)
    for name, size in bucket.nodes:
        assert size > len(batch.x_dict[name])
    assert bucket.graphs > batch.batch_size


@settings(max_examples=25, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=3))
def test_real_rows_are_what_they_are_without_padding(network, sizes) -> None:
    batch = collate([random_step_graph(number, **size) for number, size in enumerate(sizes)])
    with torch.inference_mode():
        plain = forward(network, batch, with_attention=True)
        padded = forward(network, pad(batch), with_attention=True)
    for name, expected in plain.items():
        found = padded[name][: len(expected)]
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_padded_edges_stay_sorted_and_real_nodes_hear_of_no_dummy(size) -> None:
    batch = collate([random_step_graph(1, **size)])
    padded = pad(batch)
    for key, index in padded.edge_index_dict.items():
        real = batch.edge_index_dict[key].shape[1]
        assert (index[1].diff() >= 0).all()
        assert (index[0, real:] >= len(batch.x_dict[key[0]])).all()
        assert (index[1, real:] >= len(batch.x_dict[key[2]])).all()
        assert (index[1] < len(padded.x_dict[key[2]])).all()
        assert not padded.edge_attr_dict[key][real:].any()
    assert (padded.batch[len(batch.batch) :] == padded.batch_size - 1).all()


def test_buffers_keep_nothing_of_the_batch_before() -> None:
    larger, smaller = (collate([random_step_graph(seed, layers=n)]) for seed, n in ((1, 101), (2, 100)))
    assert Bucket.of(larger) == Bucket.of(smaller)
    buffers = PaddedBatch(Bucket.of(larger))
    buffers.load(larger)
    again, fresh = buffers.load(smaller), pad(smaller)
    assert torch.equal(again.batch, fresh.batch)
    for name in ("x_dict", "edge_index_dict", "edge_attr_dict"):
        for key, value in getattr(fresh, name).items():
            assert torch.equal(getattr(again, name)[key], value)


def test_a_relation_without_edges_is_another_bucket() -> None:
    graph = random_step_graph(1)
    connects = ("layer", "connects", "layer")
    fewer = with_edges(graph, {connects: [(0, 1)]})
    assert Bucket.of(collate([graph])) != Bucket.of(collate([fewer]))
    assert [key for key, _ in Bucket.of(collate([fewer])).edges] == [connects]


@pytest.mark.parametrize("graphs", [1, 2, 3])
def test_the_output_of_a_padded_batch_splits_into_the_real_graphs(network, graphs) -> None:
    batch = collate([random_step_graph(number, seeds=number) for number in range(graphs)])
    with torch.inference_mode():
        outputs = {name: value.numpy() for name, value in forward(network, pad(batch)).items()}
    shares = list(batch.split(outputs))
    assert [len(share["seed_scores"]) for share in shares] == list(range(graphs))
    assert [share["policy_logits"].shape for share in shares] == [(32,)] * graphs
