"""What a publisher gets wrong is refused at the wire, or gives a finite graph that says what is wrong."""

from __future__ import annotations

import math
import tracemalloc

import msgpack
import msgspec
import numpy as np
import pytest

from schemas.catalogue import MESSAGES
from schemas.codec import decode_payload, encode_payload
from schemas.errors import EntryError, InvalidPayload, LimitExceeded
from schemas.kasmina import MonitoredLayer
from schemas.tolaria import ActivationTelemetry, EdgeTelemetry, LayerTelemetry, ParameterTelemetry
from schemas.urza import Adjacency, BlueprintLayers, Capabilities, Monitors
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import BY_EDGE_TYPE
from tests.graph.samples import (
    edges,
    sample_blueprint,
    sample_graph,
    sample_packet,
    sample_run,
    sample_seed,
    sample_tables,
    telemetry,
)

CONNECTS = ("layer", "connects", "layer")
SEEDS = (sample_seed(),)


def over_the_wire(message):
    """``message`` as a reader gets it."""
    return decode_payload(MESSAGES[type(message).__name__], encode_payload(message))


def built(blueprint, packet=None, seeds=SEEDS):
    """The graph of what went over the wire, checked to be whole and finite."""
    packet = over_the_wire(packet or sample_packet(blueprint))
    graph = GraphBuilder(Registries()).build(sample_run(*seeds), packet, sample_tables(over_the_wire(blueprint)))
    for node_type, x in graph.x_dict.items():
        assert x.shape == (graph.topology.node_counts[node_type], NODES[node_type].raw_width)
        assert np.isfinite(x).all()
    for edge_type, rows in graph.edge_attr_dict.items():
        assert rows.shape == (len(graph.topology.edges[edge_type]), BY_EDGE_TYPE[edge_type].width)
        assert np.isfinite(rows).all()
    return graph


def every_list(pairs):
    """An adjacency that gives ``pairs`` for every relation, weights included."""
    listed = edges(pairs, weight=[math.inf] * len(pairs))
    return Adjacency(**dict.fromkeys(Adjacency.__struct_fields__, listed))


def test_edges_out_of_range_are_dropped_in_every_relation_and_counted():
    worst = 2**31 - 1
    graph = built(sample_blueprint(4, adjacency=every_list([(0, 1), (-1, 0), (0, worst), (worst, -worst)])))
    assert len(graph.topology.edges[CONNECTS]) == 1
    for name in Adjacency.__struct_fields__:
        assert f"{name}: 3 edges point outside the blueprint's nodes and were dropped" in graph.problems


def test_repeated_edges_are_dropped_in_every_relation_and_counted():
    graph = built(sample_blueprint(4, adjacency=every_list([(0, 1)] * 5)))
    for name in Adjacency.__struct_fields__:
        assert f"{name}: 4 edges repeat another and were dropped" in graph.problems


def test_an_edge_from_a_layer_to_itself_is_an_edge():
    graph = built(sample_blueprint(3, adjacency=Adjacency(connects=edges([(1, 1)]))))
    assert graph.topology.edges[CONNECTS].source.tolist() == [1]


@pytest.mark.parametrize("section", ["layers", "activations", "parameters"])
def test_duplicate_node_ids_are_refused_at_the_wire(section):
    plain = msgpack.unpackb(encode_payload(sample_blueprint(4, parameters=3)))
    names = plain["graph"][section][f"{section[:-1]}_id"]
    names[1] = names[0]
    with pytest.raises(InvalidPayload, match=f"{names[0]}' at position 1 occurs twice"):
        decode_payload(MESSAGES["Blueprint"], msgpack.packb(plain))


def test_seeds_with_one_id_are_one_node_and_counted():
    blueprint = sample_blueprint()
    seeds = [sample_seed("twin", alpha=0.1), sample_seed("other"), sample_seed("twin", alpha=0.9)]
    graph = built(blueprint, sample_packet(blueprint, seed_states=seeds), seeds=())
    assert graph.seed_ids == ("twin", "other")
    assert graph.x_dict["seed"][0, NODES["seed"].slots["alpha"].start] == np.float32(0.9)
    assert graph.problems == ("state.seed_states: 1 seeds repeat the id of another; the last one counts",)


def test_a_blueprint_of_no_layers_at_all_is_a_graph():
    empty = BlueprintLayers(layer_id=[], type=[])
    blueprint = sample_blueprint(1, layer_columns=empty, activations=None, adjacency=every_list([]))
    graph = built(blueprint, sample_packet(blueprint, layers=LayerTelemetry(latency_ms=[])))
    assert graph.topology.node_counts["layer"] == graph.topology.node_counts["activation"] == 0


def test_a_layer_that_no_blueprint_has_is_dropped_from_what_seeds_watch():
    seed = sample_seed(monitored_layers=[MonitoredLayer(layer_id=name) for name in ("gone", "layer1", "Layer1")])
    graph = built(sample_blueprint(3), seeds=(seed,))
    assert graph.topology.edges["seed", "monitors", "layer"].target.tolist() == [1]
    assert graph.problems == ("monitors: 2 layers are not in the blueprint and were dropped",)


def test_positions_that_the_blueprint_binds_beyond_its_layers_are_dropped():
    monitors = Monitors(by_seed_index={"0": [1, 99, 2**40], "not a number": [0]})
    seed = sample_seed(monitored_layers=None)
    graph = built(sample_blueprint(3, monitors=monitors), seeds=(seed,))
    assert graph.topology.edges["seed", "monitors", "layer"].target.tolist() == [1]
    assert graph.problems == ("monitors: 2 layers are not in the blueprint and were dropped",)


def test_parameter_positions_beyond_the_blueprints_are_dropped():
    capabilities = Capabilities(allowed_parameters_by_seed_index={"0": [0, 0, 7]})
    graph = built(sample_blueprint(capabilities=capabilities), seeds=(sample_seed(allowed_parameters=None),))
    assert graph.topology.edges["seed", "allowed", "parameter"].target.tolist() == [0]
    assert graph.problems == ("allowed: 1 parameters are not in the blueprint and were dropped",)


RECORDS = {
    "layers": LayerTelemetry,
    "activations": ActivationTelemetry,
    "parameters": ParameterTelemetry,
    "edges": EdgeTelemetry,
}


@pytest.mark.parametrize("group", RECORDS)
@pytest.mark.parametrize("length", [0, 1, 100])
def test_columns_of_a_wrong_length_are_left_out_and_named(group, length):
    blueprint = sample_blueprint()
    graph = built(blueprint, sample_packet(blueprint, **{group: telemetry(RECORDS[group], length)}))
    (text,) = graph.problems
    assert text.startswith(f"state.{group}: {length} elements where the blueprint has ")


def test_columns_of_several_lengths_are_refused_at_the_wire():
    plain = msgpack.unpackb(encode_payload(sample_packet(sample_blueprint())))
    plain["layers"]["latency_ms"] = plain["layers"]["latency_ms"][:-2]
    with pytest.raises(InvalidPayload, match="send one element per node in the blueprint's order"):
        decode_payload(MESSAGES["SystemStatePacket"], msgpack.packb(plain))


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_missing_everywhere(worst):
    blueprint = sample_blueprint()
    packet = sample_packet(blueprint, training_loss=worst, edges=EdgeTelemetry(latency_ms=[worst] * 6))
    groups = {
        name: msgspec.structs.replace(
            columns,
            **{field: np.full_like(column, worst) for field, column in _floats(columns)},
        )
        for name in ("layers", "activations", "parameters")
        if (columns := getattr(packet, name)) is not None
    }
    packet = msgspec.structs.replace(
        packet, training_metrics=dict.fromkeys(packet.training_metrics, worst), **groups
    )
    graph = built(blueprint, packet)
    assert graph.problems == ()
    for key in ("layer.latency_ms", "activation.stability", "parameter.momentum", "global.cpu_utilisation"):
        assert graph.coverage.keys[key] == 0.0
    assert graph.coverage.keys["layer.step_loss"] == 0.0


def _floats(columns):
    named = ((field, getattr(columns, field)) for field in columns.__struct_fields__)
    return [(field, column) for field, column in named if column.dtype.kind == "f"]


SOURCES_OF_CONNECTS = b"\x81\xa5graph\x81\xa9adjacency\x81\xa8connects\x81\xa6source"


@pytest.mark.parametrize("kind", [b"\xc6", b"\xdd"], ids=["bin", "list"])
def test_ten_million_edges_claimed_in_a_header_are_refused_before_anything_is_allocated(kind):
    claim = kind + (10_000_000 * (4 if kind == b"\xc6" else 1)).to_bytes(4, "big")
    tracemalloc.start()
    try:
        with pytest.raises(EntryError):
            decode_payload(MESSAGES["Blueprint"], SOURCES_OF_CONNECTS + claim + b"\x01" * 64)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_more_edges_than_a_blueprint_may_have_are_refused_though_they_are_there():
    column = bytes(4 * 1024 * 1024 + 4)
    payload = SOURCES_OF_CONNECTS + b"\xc6" + len(column).to_bytes(4, "big") + column
    with pytest.raises(LimitExceeded, match="4194304"):
        decode_payload(MESSAGES["Blueprint"], payload)


def test_a_blueprint_that_its_publisher_sends_empty_sections_of_is_a_graph():
    graph = sample_graph(2, adjacency=Adjacency(), capabilities=Capabilities(), monitors=Monitors())
    blueprint = msgspec.structs.replace(sample_blueprint(2), graph=graph)
    assert built(blueprint).problems == ()
