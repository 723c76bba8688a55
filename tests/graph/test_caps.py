"""Above the limits every node keeps its strongest in-edges, the same everywhere, with their own attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.urza import Adjacency
from tamiyo_stream.bench.synthetic_run import synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.caps import strongest
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import EDGE_TYPES
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS
from tamiyo_stream.graph.topology import build_topology
from tests.graph.samples import edges, sample_blueprint, sample_packet, sample_run, sample_seed

CONNECTS = ("layer", "connects", "layer")
CONNECTED_FROM = ("layer", "connected_from", "layer")
CAP = NEIGHBOUR_CAPS[0]
LAYERS = 60
LAST = LAYERS - 1


def into_last(order=range(LAST), weight=None):
    """A blueprint whose every layer connects to the last one, listed in ``order``."""
    pairs = [(source, LAST) for source in order]
    weights = None if weight is None else [weight(source) for source in order]
    adjacency = Adjacency(connects=edges(pairs, weight=weights))
    return sample_blueprint(LAYERS, adjacency=adjacency)


def capped(blueprint, seeds=(), kernels=()):
    return build_topology(blueprint, seeds, kernels, max_nodes=0)


def sources(built, edge_type=CONNECTS):
    return built.topology.edges[edge_type].source.tolist()


def test_a_graph_within_the_limits_keeps_every_edge_and_has_no_ranks():
    built = build_topology(into_last(), (), ())
    assert len(sources(built)) == LAST
    assert (built.sampled_edges, built.topology.ranks) == (0, {})


@pytest.mark.parametrize("limit", ["max_nodes", "max_edges"])
def test_one_node_or_edge_above_a_limit_caps_the_in_degrees(limit):
    whole = build_topology(into_last(), (), ())
    size = {"max_nodes": whole.topology.num_nodes, "max_edges": whole.topology.num_edges // 2}[limit]
    assert len(sources(build_topology(into_last(), (), (), **{limit: size}))) == LAST
    assert len(sources(build_topology(into_last(), (), (), **{limit: size - 1}))) == CAP


def test_the_strongest_connections_are_kept_strongest_first():
    built = capped(into_last(weight=float))
    assert sources(built) == list(range(LAST - 1, LAST - 1 - CAP, -1))
    assert built.topology.ranks[CONNECTS].tolist() == list(range(CAP))


def test_a_weight_that_is_not_a_number_is_the_weakest_and_a_negative_one_counts_by_magnitude():
    built = capped(into_last(weight=lambda source: {0: np.nan, 1: -500.0}.get(source, float(source))))
    assert sources(built)[0] == 1
    assert 0 not in sources(built)


def test_without_weights_the_choice_does_not_depend_on_the_order_of_the_list():
    rng = np.random.default_rng(0)
    choices = {tuple(sources(capped(into_last(rng.permutation(LAST).tolist())))) for _ in range(5)}
    assert len(choices) == 1
    assert choices != {tuple(range(CAP))}


def test_equal_weights_are_decided_by_the_draw():
    assert sources(capped(into_last(weight=lambda _: 1.0))) == sources(capped(into_last()))


def test_each_direction_is_capped_by_its_own_destination():
    built = capped(into_last())
    assert len(sources(built)) == CAP
    assert built.topology.edges[CONNECTED_FROM].target.tolist() == list(range(LAST))  # each has one edge only


def test_the_context_keeps_as_many_layers_as_any_node():
    built = capped(sample_blueprint(LAYERS), (sample_seed(),))
    assert len(built.topology.edges["context", "conditions", "layer"]) == LAYERS
    assert len(built.topology.edges["layer", "conditioned_by", "context"]) == CAP


def test_dropped_edges_of_both_directions_are_counted():
    built = capped(into_last())
    whole = build_topology(into_last(), (), ())
    assert built.sampled_edges == whole.topology.num_edges - built.topology.num_edges > LAST - CAP


def test_ranks_are_part_of_the_structure():
    weak, strong = (capped(into_last(weight=lambda s, sign=sign: 100.0 + sign * s)) for sign in (1, -1))
    short = build_topology(sample_blueprint(4), (), ())
    ranked = capped(sample_blueprint(4))
    assert weak.topology.structure_hash != strong.topology.structure_hash
    assert short.topology.num_edges == ranked.topology.num_edges
    assert short.topology.structure_hash != ranked.topology.structure_hash


def test_every_edge_type_has_ranks_that_start_at_zero_and_stay_below_the_cap():
    blueprint, _, seeds = synthetic_run(300, 6000)
    topology = capped(blueprint, seeds, tuple(synthetic_tables(blueprint).kernels.values())).topology
    assert set(topology.ranks) == set(EDGE_TYPES)
    for edge_type, each in topology.edges.items():
        expected = np.concatenate([np.arange(degree) for degree in np.diff(each.indptr)] or [[]])
        assert np.array_equal(topology.ranks[edge_type], expected)
        assert len(expected) == 0 or expected.max() < CAP
        assert np.array_equal(np.repeat(np.arange(len(each.indptr) - 1), np.diff(each.indptr)), each.target)


def rows_by_pair(graph, edge_type):
    each = graph.topology.edges[edge_type]
    pairs = zip(each.source.tolist(), each.target.tolist(), strict=True)
    return dict(zip(pairs, graph.edge_attr_dict[edge_type], strict=True))


def test_a_kept_edge_has_the_attributes_it_has_in_the_whole_graph():
    blueprint, packet, seeds = synthetic_run(300, 6000)
    tables, run = synthetic_tables(blueprint), sample_run(*seeds)
    whole = GraphBuilder(Registries()).build(run, packet, tables)
    builder = GraphBuilder(Registries(), max_edges=100)
    for _ in range(3):
        graph = builder.build(run, packet, tables)
    assert graph.sampled_edges == whole.topology.num_edges - graph.topology.num_edges > 1000
    for edge_type in EDGE_TYPES:
        complete, kept = rows_by_pair(whole, edge_type), rows_by_pair(graph, edge_type)
        assert len(kept) == len(graph.topology.edges[edge_type])
        for pair, row in kept.items():
            assert np.allclose(row, complete[pair], atol=1e-6), edge_type


def test_reverse_only_edges_have_attributes_too():
    blueprint = into_last(weight=float)
    tables = synthetic_tables(blueprint, 0)
    graph = GraphBuilder(Registries(), max_nodes=0).build(sample_run(), sample_packet(blueprint), tables)
    reverse = rows_by_pair(graph, CONNECTED_FROM)
    assert len(reverse) == LAST
    assert [float(reverse[LAST, source][0]) for source in range(3)] == [0.0, 1.0, 2.0]  # largest fan-out is 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), unique=True, max_size=40), st.integers(1, 4))
def test_no_destination_keeps_more_than_the_cap_and_none_loses_more_than_it_must(pairs, cap):
    source, target = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    strength = (source * 7 % 5).astype(np.float32)
    kept, ranks = strongest(CONNECTS, source, target, strength, cap)
    for node in range(5):
        own = np.flatnonzero(target[kept] == node)
        every = np.sort(strength[target == node])[::-1]
        assert strength[kept[own]].tolist() == every[:cap].tolist()
        assert ranks[own].tolist() == list(range(len(own)))
