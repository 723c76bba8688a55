"""The builder: what a step's graph says, what is missing in it, and what building leaves alone."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from schemas.kasmina import MonitoredLayer
from schemas.record import Float16Column
from schemas.tolaria import EdgeTelemetry, LayerTelemetry, ParameterTelemetry
from schemas.urza import Adjacency, BlueprintDescriptor, BlueprintLayers
from tamiyo_stream.graph.builder import RANKING_STEPS, GraphBuilder
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EDGE_TYPES
from tamiyo_stream.runs import norms
from tamiyo_stream.runs.state import EwmaNorm, StepRecord
from tests.graph.samples import (
    edges,
    sample_blueprint,
    sample_graph,
    sample_kernel,
    sample_packet,
    sample_run,
    sample_seed,
    sample_sheet,
    sample_tables,
    telemetry,
)


@pytest.fixture
def builder():
    return GraphBuilder(Registries())


def slots(graph, node_type, channel):
    return graph.x_dict[node_type][:, NODES[node_type].slots[channel]]


def value(graph, node_type, channel):
    return graph.x_dict[node_type][:, NODES[node_type].slots[channel].start]


def mask(graph, node_type, channel):
    return graph.x_dict[node_type][:, NODES[node_type].mask_slots[channel]]


def attribute(graph, edge_type, name):
    return graph.edge_attr_dict[edge_type][:, BY_EDGE_TYPE[edge_type].slots[name].start]


def attribute_mask(graph, edge_type, name):
    return graph.edge_attr_dict[edge_type][:, BY_EDGE_TYPE[edge_type].mask_slots[name]]


def build(builder, blueprint, packet=None, run=None, tables=None):
    run = run or sample_run(sample_seed())
    return builder.build(run, packet or sample_packet(blueprint), tables or sample_tables(blueprint))


def layers_with(**columns):
    return LayerTelemetry(**columns)


def test_complete_inputs_give_every_mandatory_feature_and_no_problem(builder):
    blueprint = sample_blueprint(
        adjacency=Adjacency(
            **{
                **{
                    name: getattr(sample_graph().adjacency, name)
                    for name in ("connects", "feeds", "influences", "tunes")
                },
                "configures": edges([(0, 0)], weight=[1.0]),
                "modulates": edges([(0, 0)], weight=[1.0]),
            }
        )
    )
    run = sample_run(sample_seed())
    run.history = [StepRecord(step=0, loss=1.0, samples_per_s=4000.0, decision_latency_ms=9.0)]
    graph = build(builder, blueprint, run=run)
    assert graph.problems == ()
    assert graph.coverage.mandatory == 1.0
    assert {key for key, share in graph.coverage.keys.items() if share < 1} == {"global.weatherlight_health"}


def test_shapes_are_those_of_the_tables(builder):
    graph = build(builder, sample_blueprint())
    for node_type, schema in NODES.items():
        x = graph.x_dict[node_type]
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.shape == (graph.topology.node_counts[node_type], schema.raw_width)
        assert not x[:, schema.used_width :].any()
    for edge_type in EDGE_TYPES:
        rows = graph.edge_attr_dict[edge_type]
        assert rows.shape == (len(graph.topology.edges[edge_type]), BY_EDGE_TYPE[edge_type].width)


def test_categories_hold_their_index_in_the_first_slot_and_zeros_behind(builder):
    graph = build(builder, sample_blueprint())
    blocks = slots(graph, "layer", "layer_type")
    assert blocks[:, 0].tolist() == [1, 2, 1, 2, 1, 2]
    assert not blocks[:, 1:].any()
    assert value(graph, "seed", "lifecycle_stage").tolist() == [4]
    assert value(graph, "parameter", "optimizer_family").tolist() == [3, 3]


def test_moving_statistics_are_those_before_the_step(builder):
    blueprint = sample_blueprint()
    run = sample_run()
    run.norms = {"loss": EwmaNorm(0.5, 0.04)}
    graph = build(builder, blueprint, sample_packet(blueprint, training_loss=0.7), run=run)
    assert value(graph, "layer", "step_loss") == pytest.approx([1.0] * 6)


def test_building_changes_nothing_of_the_run(builder):
    blueprint = sample_blueprint()
    run = sample_run(sample_seed())
    run.history = [StepRecord(step=0, loss=1.0)]
    before = msgspec.msgpack.encode(run)
    packet = sample_packet(blueprint)
    build(builder, blueprint, packet, run=run)
    builder.samples(run, packet)
    assert msgspec.msgpack.encode(run) == before


def test_building_twice_gives_the_same_graph(builder):
    blueprint = sample_blueprint()
    first, second = build(builder, blueprint), build(builder, blueprint)
    assert all(np.array_equal(first.x_dict[name], second.x_dict[name]) for name in NODES)
    assert all(np.array_equal(first.edge_attr_dict[key], second.edge_attr_dict[key]) for key in EDGE_TYPES)


def test_topology_is_reused_while_the_structure_stays(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    first = builder.build(run, sample_packet(blueprint), tables)
    run.seeds = {"seed0": sample_seed(alpha=0.9)}
    second = builder.build(run, sample_packet(blueprint, step=2), tables)
    assert second.topology is first.topology
    assert value(second, "seed", "alpha") == pytest.approx([0.9])
    assert value(first, "seed", "alpha") == pytest.approx([0.25])


def test_a_graph_in_use_is_never_overwritten_and_its_buffers_return(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    held = [builder.build(run, sample_packet(blueprint, step=i, training_loss=float(i)), tables) for i in range(8)]
    assert [float(value(graph, "layer", "step_loss")[0]) for graph in held] == pytest.approx(
        [min((i - 0.8) / 0.3, 6.0) for i in range(8)]
    )
    view = held[0].x_dict["layer"][:1]
    addresses = {id(graph.x_dict["layer"]) for graph in held[1:4]}
    del held
    again = builder.build(run, sample_packet(blueprint, training_loss=3.0), tables)
    assert id(again.x_dict["layer"]) in addresses
    assert view[0, NODES["layer"].slots["step_loss"].start] == pytest.approx(-0.8 / 0.3)


def test_reused_buffers_show_nothing_of_an_older_step(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    for step in range(3):
        builder.build(run, sample_packet(blueprint, step=step), tables)
    bare = sample_packet(blueprint, step=9, layers=None, activations=None, parameters=None, training_loss=None)
    bare = msgspec.structs.replace(bare, training_metrics={})
    reused = builder.build(run, bare, tables)
    fresh = GraphBuilder(Registries()).build(run, bare, tables)
    assert all(np.array_equal(reused.x_dict[name], fresh.x_dict[name]) for name in NODES)
    assert all(np.array_equal(reused.edge_attr_dict[key], fresh.edge_attr_dict[key]) for key in EDGE_TYPES)


def test_changed_sheet_and_attached_kernel_reach_the_rows(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    packet = sample_packet(blueprint)
    builder.build(run, packet, tables)
    tables.add_sheet(msgspec.structs.replace(sample_sheet("kernel-a", risk_score=0.9), issued_at=2))
    graph = builder.build(run, packet, tables)
    assert value(graph, "blueprint", "risk") == pytest.approx([0.9, 0.4])
    assert value(graph, "blueprint", "candidate_score") == pytest.approx([0.1 + 0.15, 0.6 + 0.15])


def test_new_kernel_and_new_seed_change_the_graph(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    builder.build(run, sample_packet(blueprint), tables)
    tables.add_blueprint(sample_kernel("kernel-z"))
    run.seeds["seed1"] = sample_seed("seed1")
    graph = builder.build(run, sample_packet(blueprint), tables)
    assert graph.kernel_ids == ("kernel-a", "kernel-b", "kernel-z")
    assert graph.seed_ids == ("seed0", "seed1")


def test_two_runs_stay_separate(builder):
    blueprint = sample_blueprint()
    tables = sample_tables(blueprint)
    one, two = sample_run(sample_seed(alpha=0.1), run_id="one"), sample_run(sample_seed(alpha=0.8), run_id="two")
    one.norms = {"loss": EwmaNorm(0.9, 1.0)}
    packets = [sample_packet(blueprint, run_id=name) for name in ("one", "two")]
    first = builder.build(one, packets[0], tables)
    second = builder.build(two, packets[1], tables)
    again = builder.build(one, packets[0], tables)
    assert value(first, "seed", "alpha") == pytest.approx([0.1])
    assert value(second, "seed", "alpha") == pytest.approx([0.8])
    assert np.array_equal(first.x_dict["layer"], again.x_dict["layer"])
    assert float(value(first, "layer", "step_loss")[0]) == 0.0
    assert float(value(second, "layer", "step_loss")[0]) == pytest.approx(1 / 3)


def test_cache_is_bounded_and_evicted_runs_build_again():
    builder = GraphBuilder(Registries(), max_cached=1)
    blueprint = sample_blueprint()
    tables = sample_tables(blueprint)
    graphs = [builder.build(sample_run(run_id=name), sample_packet(blueprint), tables) for name in ("a", "b", "a")]
    assert len(builder._runs) == 1
    assert graphs[0].topology is not graphs[2].topology
    assert graphs[0].topology.structure_hash == graphs[2].topology.structure_hash


def test_missing_blueprint_still_gives_a_finite_graph(builder):
    graph = builder.build(sample_run(sample_seed()), sample_packet(), sample_tables())
    assert graph.problems == ("blueprint: 'host' has not arrived",)
    assert len(graph.layer_ids) == 0
    assert all(np.isfinite(x).all() for x in graph.x_dict.values())
    assert graph.coverage.types["node.layer"] == 0.0
    assert graph.coverage.types["node.seed"] > 0.9
    assert graph.coverage.keys["seed.layer_depth"] == 0.0  # a share of a depth that nobody knows


def test_columns_of_the_wrong_length_are_left_out_and_named(builder):
    blueprint = sample_blueprint(6)
    graph = build(builder, blueprint, sample_packet(blueprint, layers=telemetry(LayerTelemetry, 5)))
    assert graph.problems == ("state.layers: 5 elements where the blueprint has 6; its columns were left out",)
    assert not mask(graph, "layer", "weight_norm").any()
    assert mask(graph, "activation", "saturation_rate").all()


def test_columns_of_another_blueprint_version_are_left_out_and_named(builder):
    blueprint = sample_blueprint()
    graph = build(builder, blueprint, sample_packet(blueprint, blueprint_version="v0"))
    assert len(graph.problems) == 3
    assert not mask(graph, "layer", "gradient_norm").any()
    assert mask(graph, "layer", "step_loss").all()


def test_zero_is_a_value_while_nan_and_infinity_are_missing(builder):
    blueprint = sample_blueprint(4)
    columns = layers_with(gradient_norm=[0.0, math.nan, math.inf, -math.inf])
    graph = build(builder, blueprint, sample_packet(blueprint, layers=columns))
    assert mask(graph, "layer", "gradient_norm").tolist() == [1, 0, 0, 0]
    assert value(graph, "layer", "gradient_norm").tolist() == pytest.approx([-2.0, 0, 0, 0])
    assert graph.coverage.keys["layer.gradient_norm"] == 0.25


def test_diverged_loss_is_missing_not_zero(builder):
    blueprint = sample_blueprint()
    graph = build(builder, blueprint, sample_packet(blueprint, training_loss=math.nan))
    assert not mask(graph, "layer", "step_loss").any()


def test_absent_seed_statistics_are_one_half_with_mask_zero(builder):
    seed = sample_seed(activity_level=None, success_rate=None, risk_score=None, alpha=None)
    graph = build(builder, sample_blueprint(), run=sample_run(seed))
    for channel in ("activity_level", "success_rate", "risk_score"):
        assert (value(graph, "seed", channel), mask(graph, "seed", channel)) == ([0.5], [0.0])
    assert (value(graph, "seed", "alpha"), mask(graph, "seed", "alpha")) == ([0.0], [0.0])


def test_kasminas_metric_map_stands_in_for_absent_fields(builder):
    seed = sample_seed(alpha=None, metrics={"alpha": 0.75})
    graph = build(builder, sample_blueprint(), run=sample_run(seed))
    assert (value(graph, "seed", "alpha"), mask(graph, "seed", "alpha")) == ([0.75], [1.0])


def test_multi_hot_marks_the_allowed_methods(builder):
    graph = build(builder, sample_blueprint())
    assert slots(graph, "seed", "allowed_blending_methods").tolist() == [[1, 0, 0, 1]]
    missing = build(builder, sample_blueprint(), run=sample_run(sample_seed(allowed_blending_methods=None)))
    assert mask(missing, "seed", "allowed_blending_methods").tolist() == [0]


def test_shared_mask_needs_every_member(builder):
    complete = build(builder, sample_blueprint())
    assert mask(complete, "blueprint", "approval_required").tolist() == [1, 1]
    assert value(complete, "blueprint", "stage") == pytest.approx([0.5, 0.5])
    tables = sample_tables(sample_blueprint(), kernels=0)
    tables.add_blueprint(sample_kernel(descriptor=BlueprintDescriptor(stage=None, quarantine_only=True)))
    graph = build(builder, sample_blueprint(), tables=tables)
    assert mask(graph, "blueprint", "quarantine_only").tolist() == [0]
    assert graph.coverage.keys["blueprint.quarantine_only"] == 1.0
    assert graph.coverage.keys["blueprint.stage"] == 0.0


def test_percentages_become_shares(builder):
    graph = build(builder, sample_blueprint())
    assert value(graph, "context", "gpu_utilisation") == pytest.approx([0.5])
    assert value(graph, "context", "cpu_utilisation") == pytest.approx([0.25])


def test_ratios_are_shares_of_the_graphs_total(builder):
    blueprint = sample_blueprint(3)
    columns = layers_with(latency_ms=[1.0, 2.0, 1.0], loss_contribution=[3.0, 1.0, 0.0])
    graph = build(builder, blueprint, sample_packet(blueprint, layers=columns))
    assert value(graph, "layer", "latency_budget_utilisation") == pytest.approx([0.25, 0.5, 0.25])
    assert value(graph, "layer", "loss_contribution") == pytest.approx([0.75, 0.25, 0.0])
    assert value(graph, "layer", "depth") == pytest.approx([0.0, 0.5, 1.0])


CONNECTS = ("layer", "connects", "layer")


def test_connections_read_their_source_layer_and_reverse_rows_repeat_them(builder):
    blueprint = sample_blueprint(3)  # edges 0-1, 1-2, 0-2; largest fan-out 2
    columns = layers_with(data_flow_volume=[50.0, 100.0, 7.0])
    graph = build(builder, blueprint, sample_packet(blueprint, layers=columns))
    assert graph.topology.edges[CONNECTS].source.tolist() == [0, 1, 0]
    assert attribute(graph, CONNECTS, "data_flow_volume") == pytest.approx([0.5, 1.0, 0.5])
    assert attribute(graph, CONNECTS, "connection_strength") == pytest.approx([0.5, 0.5, 0.5])
    assert attribute(graph, CONNECTS, "residual_flag").tolist() == [0, 0, 1]
    assert attribute_mask(graph, CONNECTS, "latency_ms").tolist() == [0, 0, 0]
    reverse = ("layer", "connected_from", "layer")
    assert graph.topology.edges[reverse].target.tolist() == [0, 0, 1]
    assert attribute(graph, reverse, "residual_flag").tolist() == [0, 1, 0]
    assert attribute(graph, reverse, "data_flow_volume") == pytest.approx([0.5, 0.5, 1.0])


def test_measured_edges_go_before_their_layers(builder):
    blueprint = sample_blueprint(3)
    packet = sample_packet(
        blueprint,
        layers=layers_with(data_flow_volume=[1.0, 1.0, 1.0]),
        edges=EdgeTelemetry(data_flow_volume=[10.0, 20.0, 40.0]),  # in the blueprint's order: 0-1, 1-2, 0-2
    )
    graph = build(builder, blueprint, packet)
    assert attribute(graph, CONNECTS, "data_flow_volume") == pytest.approx([0.25, 0.5, 1.0])


def test_dropped_edges_do_not_shift_the_columns(builder):
    graph_columns = sample_graph(3)
    adjacency = Adjacency(connects=edges([(0, 9), (0, 1), (1, 2)], weight=[9.0, 1.0, 2.0]))
    blueprint = sample_blueprint(3, adjacency=adjacency, layer_columns=graph_columns.layers)
    packet = sample_packet(blueprint, edges=EdgeTelemetry(latency_ms=[8.0, 1.0, 2.0]))
    graph = build(builder, blueprint, packet)
    assert attribute(graph, CONNECTS, "latency_ms") == pytest.approx([0.5, 1.0])
    assert attribute(graph, CONNECTS, "connection_strength") == pytest.approx([1.0, 2.0])


def test_monitor_edges_carry_what_the_seed_exports(builder):
    monitors = ("seed", "monitors", "layer")
    graph = build(builder, sample_blueprint())
    assert attribute(graph, monitors, "monitoring_frequency") == pytest.approx([0.5])
    assert attribute(graph, monitors, "adaptation_trigger_threshold") == pytest.approx([0.8])
    assert attribute_mask(graph, monitors, "quarantine_flag").tolist() == [1]
    unbound = build(builder, sample_blueprint(), run=sample_run(sample_seed(monitored_layers=None)))
    assert attribute_mask(unbound, monitors, "monitoring_frequency").tolist() == [0, 0, 0]


def test_unbound_seeds_follow_the_loss_contributions_once_per_window(builder):
    blueprint = sample_blueprint(6)
    run, tables = sample_run(sample_seed(monitored_layers=None)), sample_tables(blueprint)

    def watched(step, shares):
        columns = None if shares is None else layers_with(loss_contribution=shares)
        graph = builder.build(run, sample_packet(blueprint, step=step, layers=columns), tables)
        return set(graph.topology.edges["seed", "monitors", "layer"].target.tolist())

    assert watched(1, None) == {3, 4, 5}
    assert watched(2, [9.0, 8.0, 7.0, 1.0, 1.0, math.nan]) == {0, 1, 2}
    assert watched(3, [1.0, 1.0, 1.0, 9.0, 8.0, 7.0]) == {0, 1, 2}
    assert watched(3 + RANKING_STEPS, [1.0, 1.0, 1.0, 9.0, 8.0, 7.0]) == {3, 4, 5}


def test_published_values_stand_in_for_columns_a_step_leaves_out(builder):
    layers = BlueprintLayers(layer_id=["a", "b"], type=["linear"] * 2, weight_norm=[1.0, 1.4])
    blueprint = sample_blueprint(2, layer_columns=layers)
    packet = sample_packet(blueprint, layers=layers_with(weight_norm=[math.nan, 1.8]))
    graph = build(builder, blueprint, packet)
    assert value(graph, "layer", "weight_norm") == pytest.approx([0.0, 2.0])
    assert mask(graph, "layer", "weight_norm").tolist() == [1, 1]


def test_unnamed_activation_is_embedded_by_the_layer_that_feeds_it(builder):
    layers = BlueprintLayers(layer_id=["a", "b"], type=["linear", "conv2d"], activation_type=None)
    blueprint = sample_blueprint(2, layer_columns=layers, activations=None, adjacency=None)
    graph = build(builder, blueprint)
    assert value(graph, "activation", "activation_type").tolist() == [0, 0]
    assert value(graph, "activation", "fallback_layer_type").tolist() == [1, 2]
    named = build(builder, sample_blueprint(2))
    assert value(named, "activation", "fallback_layer_type").tolist() == [0]


def test_extreme_numbers_stay_finite_and_limited(builder):
    blueprint = sample_blueprint(3)
    columns = layers_with(
        gradient_norm=[3e38, -3e38, 0.0], data_flow_volume=[3e38, -1.0, 0.0], loss_contribution=[3e38, 3e38, -3e38]
    )
    packet = sample_packet(blueprint, layers=columns, training_loss=1e300)
    graph = build(builder, blueprint, packet)
    assert all(np.isfinite(x).all() for x in (*graph.x_dict.values(), *graph.edge_attr_dict.values()))
    start = NODES["layer"].slots["weight_norm"].start
    assert np.abs(np.delete(graph.x_dict["layer"][:, start:], [0], axis=1)).max() <= norms.Z_LIMIT


def test_float16_columns_are_read_as_they_were_sent(builder):
    blueprint = sample_blueprint(2)
    packet = sample_packet(blueprint, layers=layers_with(update_frequency=Float16Column.of([0.5, math.nan])))
    graph = build(builder, blueprint, packet)
    assert value(graph, "layer", "update_frequency").tolist() == [0.5, 0.0]
    assert mask(graph, "layer", "update_frequency").tolist() == [1, 0]


def test_seeds_of_the_packet_stand_in_where_kasmina_exports_none(builder):
    blueprint = sample_blueprint()
    packet = sample_packet(blueprint, seed_states=[sample_seed("from-packet")])
    assert build(builder, blueprint, packet, run=sample_run()).seed_ids == ("from-packet",)
    assert build(builder, blueprint, packet, run=sample_run(sample_seed("exported"))).seed_ids == ("exported",)


def test_samples_hold_each_measured_statistic_once(builder):
    blueprint = sample_blueprint(4)
    run = sample_run(sample_seed(gradient_norm=0.5, age_epochs=7), sample_seed("seed1", gradient_norm=None))
    packet = sample_packet(blueprint, layers=layers_with(weight_norm=[1.0, 2.0, 3.0, 4.0]), parameters=None)
    samples = builder.samples(run, packet)
    assert samples["loss"].tolist() == [0.9]
    assert samples["samples_per_s"].tolist() == [4000.0]
    assert samples["layer_weight_norm"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert samples["seed_gradient_norm"].tolist() == [0.5]
    assert samples["seed_age"].tolist() == [7.0, 3.0]
    assert set(samples) == {
        "loss", "gradient_norm", "samples_per_s", "hook_latency_ms", "layer_weight_norm", "seed_gradient_norm",
        "seed_age",
    }  # fmt: skip


def test_a_run_of_steps_moves_the_statistics_to_what_it_measures(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(), sample_tables(blueprint)
    for step in range(200):
        packet = sample_packet(blueprint, step=step, training_loss=3.0)
        graph = builder.build(run, packet, tables)
        norms.observe(run.norms, builder.samples(run, packet))
    assert run.norms["loss"].mean == pytest.approx(3.0)
    assert abs(float(value(graph, "layer", "step_loss")[0])) < 0.1


def test_forgotten_run_is_built_anew(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(), sample_tables(blueprint)
    first = builder.build(run, sample_packet(blueprint), tables)
    builder.forget("run")
    assert builder.build(run, sample_packet(blueprint), tables).topology is not first.topology


def test_loss_contributions_leave_the_topology_of_bound_seeds_alone(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    first, second = (
        builder.build(run, sample_packet(blueprint, step=step, seed=step), tables)
        for step in (1, 1 + RANKING_STEPS)
    )
    assert second.topology is first.topology


def test_blueprint_without_layers_gives_a_finite_graph(builder):
    graph = build(builder, sample_blueprint(0, adjacency=None), sample_packet())
    assert graph.layer_ids == ()
    assert all(np.isfinite(x).all() for x in graph.x_dict.values())


def test_graphs_held_at_once_agree_on_what_did_not_change(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(sample_seed()), sample_tables(blueprint)
    held = [builder.build(run, sample_packet(blueprint), tables) for _ in range(3)]
    for graph in held[1:]:
        assert all(np.array_equal(held[0].x_dict[name], graph.x_dict[name]) for name in NODES)
        assert all(np.array_equal(held[0].edge_attr_dict[key], graph.edge_attr_dict[key]) for key in EDGE_TYPES)


def test_static_edge_attributes_reach_the_reverse_rows(builder):
    adjacency = Adjacency(configures=edges([(1, 0), (0, 1)], weight=[2.0, 4.0]))
    graph = build(builder, sample_blueprint(4, adjacency=adjacency))
    forward, reverse = ("activation", "configures", "parameter"), ("parameter", "configured_by", "activation")
    assert attribute(graph, forward, "link_weight") == pytest.approx([0.5, 1.0])
    assert attribute(graph, reverse, "link_weight") == pytest.approx([1.0, 0.5])


def test_coverage_follows_each_step(builder):
    blueprint = sample_blueprint()
    run, tables = sample_run(), sample_tables(blueprint)
    shares = [
        builder.build(run, sample_packet(blueprint, **changes), tables).coverage.keys["layer.weight_norm"]
        for changes in ({}, {"layers": None}, {})
    ]
    assert shares == [1.0, 0.0, 1.0]


def test_one_member_of_a_shared_mask_is_not_enough(builder):
    blueprint = sample_blueprint()
    parameters = ParameterTelemetry(convergence_rate=[0.1, 0.1], update_magnitude=[math.nan, 1e-3])
    graph = build(builder, blueprint, sample_packet(blueprint, parameters=parameters))
    assert mask(graph, "parameter", "convergence_rate").tolist() == [0, 1]


def test_republished_blueprint_replaces_the_structure(builder):
    seed = sample_seed(monitored_layers=[MonitoredLayer(layer_id=f"layer{i}") for i in (1, 5)])
    run, tables = sample_run(seed), sample_tables()
    for layers, version in ((6, "v1"), (3, "v2")):
        blueprint = msgspec.structs.replace(sample_blueprint(layers), blueprint_version=version)
        tables.add_blueprint(blueprint)
        graph = builder.build(run, sample_packet(blueprint), tables)
    assert graph.topology.node_counts["layer"] == 3
    assert graph.topology.edges["seed", "monitors", "layer"].target.tolist() == [1]
    assert graph.problems == ("monitors: 1 layers are not in the blueprint and were dropped",)


def test_unknown_category_is_index_zero_and_not_covered(builder):
    full = sample_graph(4).layers
    layers = msgspec.structs.replace(full, type=["linear", "", "linear", "linear"])
    graph = build(builder, sample_blueprint(4, layer_columns=layers))
    assert value(graph, "layer", "layer_type").tolist() == [1, 0, 1, 1]
    assert graph.coverage.keys["layer.layer_type"] == 0.75
