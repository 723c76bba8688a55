"""Synthetic graphs obey the tables."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EDGE_TYPES
from tamiyo_stream.inference.synthetic import synthetic_graph

COUNTS = st.fixed_dictionaries({name: st.integers(0, 6) for name in NODES})


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 3))
def test_rows_edges_and_attributes_fit_the_tables(counts: dict[str, int], degree: int) -> None:
    graph = synthetic_graph(counts, degree=degree, seed=1)
    assert graph.topology.node_counts == counts
    for name, schema in NODES.items():
        assert graph.x_dict[name].shape == (counts[name], schema.raw_width)
    for edge_type in EDGE_TYPES:
        edges = graph.topology.edges[edge_type]
        assert bool(len(edges)) == bool(counts[edge_type[0]] and counts[edge_type[2]])
        assert (np.diff(edges.target) >= 0).all()
        np.testing.assert_array_equal(
            np.diff(edges.indptr), np.bincount(edges.target, minlength=counts[edge_type[2]])
        )
        assert (edges.source < max(counts[edge_type[0]], 1)).all()
        assert graph.edge_attr_dict[edge_type].shape == (len(edges), BY_EDGE_TYPE[edge_type].width)


def test_a_reverse_has_the_edges_of_its_forward_relation() -> None:
    edges = synthetic_graph().topology.edges
    for relation in set(BY_EDGE_TYPE.values()):
        forward, reverse = edges[relation.edge_type], edges[relation.reverse_type]
        pairs = sorted(zip(forward.source.tolist(), forward.target.tolist(), strict=True))
        assert pairs == sorted(zip(reverse.target.tolist(), reverse.source.tolist(), strict=True))


def test_equal_seeds_give_equal_graphs_and_hashes() -> None:
    first, same, other = (synthetic_graph(seed=seed) for seed in (1, 1, 2))
    assert first.topology.structure_hash == same.topology.structure_hash != other.topology.structure_hash
    np.testing.assert_array_equal(first.x_dict["layer"], same.x_dict["layer"])
