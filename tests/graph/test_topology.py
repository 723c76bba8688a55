"""Topology on hand-made graphs: edges, reverses, pointers, and what publishers get wrong."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.urza import (
    Adjacency,
    BlueprintActivations,
    BlueprintDescriptor,
    BlueprintLayers,
    BlueprintParameterBounds,
)
from tamiyo_stream.graph.relations import EDGE_TYPES, RELATIONS
from tamiyo_stream.graph.topology import build_topology
from tests.graph.samples import edges, sample_blueprint, sample_graph, sample_kernel, sample_seed

CONNECTS = ("layer", "connects", "layer")


def with_connects(pairs, **changes):
    graph = sample_graph(4)
    fields = {name: getattr(graph.adjacency, name) for name in graph.adjacency.__struct_fields__}
    return sample_blueprint(4, adjacency=Adjacency(**{**fields, "connects": edges(pairs, **changes)}))


def pairs_of(built, edge_type):
    relation = built.topology.edges[edge_type]
    return list(zip(relation.source.tolist(), relation.target.tolist(), strict=True))


def test_known_edges_are_sorted_by_destination_with_csr_pointers():
    built = build_topology(with_connects([(2, 3), (0, 3), (0, 1), (1, 2)]), (), ())
    assert pairs_of(built, CONNECTS) == [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert built.topology.edges[CONNECTS].indptr.tolist() == [0, 0, 1, 2, 4]


def test_reverse_has_the_same_edges_turned_round_and_points_to_the_forward_rows():
    built = build_topology(with_connects([(2, 3), (0, 3), (0, 1), (1, 2)]), (), ())
    forward = pairs_of(built, CONNECTS)
    reverse = pairs_of(built, ("layer", "connected_from", "layer"))
    order = built.wirings[CONNECTS].reverse_order.tolist()
    assert reverse == [forward[row][::-1] for row in order]
    assert [target for _, target in reverse] == sorted(target for _, target in reverse)


def test_every_edge_type_is_there_consistent_and_sorted():
    kernels = (sample_kernel("kernel-a"), sample_kernel("kernel-b"))
    topology = build_topology(sample_blueprint(), (sample_seed(),), kernels).topology
    assert tuple(topology.edges) == EDGE_TYPES
    for (source, _, target), relation in topology.edges.items():
        assert len(relation), (source, target)
        assert relation.source.max() < topology.node_counts[source]
        assert np.array_equal(
            np.repeat(np.arange(topology.node_counts[target]), np.diff(relation.indptr)), relation.target
        )


def test_edges_outside_the_blueprint_are_dropped_and_counted():
    built = build_topology(with_connects([(0, 1), (-1, 2), (1, 4), (1, 2)]), (), ())
    assert pairs_of(built, CONNECTS) == [(0, 1), (1, 2)]
    assert built.wirings[CONNECTS].origin.tolist() == [0, 3]
    assert built.problems == ("connects: 2 edges point outside the blueprint's nodes and were dropped",)


def test_repeated_edge_counts_once_and_keeps_the_first_entry():
    built = build_topology(with_connects([(2, 3), (0, 3), (2, 3)]), (), ())
    assert built.wirings[CONNECTS].origin.tolist() == [0, 1]
    assert built.problems == ("connects: 1 edges repeat another and were dropped",)


def test_absent_adjacency_is_a_chain():
    built = build_topology(sample_blueprint(4, adjacency=None), (), ())
    assert pairs_of(built, CONNECTS) == [(0, 1), (1, 2), (2, 3)]


def test_explicitly_empty_adjacency_is_no_chain():
    assert pairs_of(build_topology(with_connects([]), (), ()), CONNECTS) == []


def test_largest_fan_out_is_counted():
    assert (
        build_topology(with_connects([(0, 1), (0, 2), (0, 3), (1, 3)]), (), ()).wirings[CONNECTS].max_fan_out == 3
    )


def test_layers_get_activations_of_their_own_where_the_blueprint_lists_none():
    layers = BlueprintLayers(layer_id=["a", "b", "c"], type=["linear"] * 3, activation_type=["relu", "", "gelu"])
    built = build_topology(sample_blueprint(3, layer_columns=layers, activations=None, adjacency=None), (), ())
    assert built.topology.node_ids["activation"] == ("a.activation", "c.activation")
    assert pairs_of(built, ("layer", "feeds", "activation")) == [(0, 0), (2, 1)]
    assert pairs_of(built, ("activation", "influences", "layer")) == [(0, 1)]


def test_without_a_blueprint_the_graph_is_context_seeds_and_kernels():
    topology = build_topology(None, (sample_seed(),), (sample_kernel(),)).topology
    assert topology.node_counts == {
        "layer": 0, "seed": 1, "activation": 0, "parameter": 0, "blueprint": 1, "context": 1,
    }  # fmt: skip
    assert {edge_type for edge_type, relation in topology.edges.items() if len(relation)} == {
        ("context", "conditions", "seed"),
        ("seed", "conditioned_by", "context"),
    }


def test_context_conditions_every_layer_and_seed():
    built = build_topology(sample_blueprint(3), (sample_seed("s0"), sample_seed("s1")), ())
    assert pairs_of(built, ("context", "conditions", "layer")) == [(0, 0), (0, 1), (0, 2)]
    assert pairs_of(built, ("context", "conditions", "seed")) == [(0, 0), (0, 1)]


def test_kernel_is_targeted_by_the_parameters_it_names_or_by_all():
    bounds = BlueprintParameterBounds(min_value=0.0, max_value=1.0)
    named = BlueprintDescriptor(allowed_parameters={"group1": bounds, "alpha": bounds})
    elsewhere = BlueprintDescriptor(allowed_parameters={"alpha": bounds})
    built = build_topology(
        sample_blueprint(),
        (),
        (sample_kernel("any", descriptor=elsewhere), sample_kernel("one", descriptor=named)),
    )
    assert pairs_of(built, ("parameter", "targets", "blueprint")) == [(0, 0), (1, 0), (1, 1)]


def test_structure_hash_depends_on_edges_and_counts_only():
    first = build_topology(with_connects([(0, 1), (1, 2)], weight=[1.0, 2.0]), (), ()).topology
    same = build_topology(with_connects([(1, 2), (0, 1)], weight=[5.0, 6.0]), (), ()).topology
    other = build_topology(with_connects([(0, 1), (1, 3)]), (), ()).topology
    more = build_topology(with_connects([(0, 1), (1, 2)]), (), (sample_kernel(),)).topology
    assert first.structure_hash == same.structure_hash
    assert len({first.structure_hash, other.structure_hash, more.structure_hash}) == 3


def test_one_layer_has_no_connections():
    blueprint = sample_blueprint(1, adjacency=None)
    assert pairs_of(build_topology(blueprint, (), ()), CONNECTS) == []


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: "-".join(relation.edge_type))
def test_both_directions_have_as_many_edges(relation):
    built = build_topology(sample_blueprint(), (sample_seed(),), (sample_kernel(),))
    forward, reverse = (built.topology.edges[key] for key in (relation.edge_type, relation.reverse_type))
    assert len(forward) == len(reverse) == len(built.wirings[relation.edge_type])


def test_activations_the_blueprint_lists_are_taken_as_they_are():
    activations = BlueprintActivations(activation_id=["x"], type=["relu"])
    built = build_topology(sample_blueprint(3, activations=activations, adjacency=None), (), ())
    assert built.topology.node_ids["activation"] == ("x",)
    assert pairs_of(built, ("layer", "feeds", "activation")) == []
