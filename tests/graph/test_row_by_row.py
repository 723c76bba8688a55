"""The vectorised builder writes what the tables say, value for value, whatever upstream sends."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.tolaria import EdgeTelemetry
from schemas.urza import BlueprintLayers
from tamiyo_stream.bench.synthetic_run import synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import RELATIONS
from tamiyo_stream.runs import norms
from tamiyo_stream.runs.state import EwmaNorm
from tests.graph.row_by_row import RowByRow
from tests.graph.samples import (
    sample_blueprint,
    sample_packet,
    sample_run,
    sample_seed,
    sample_sheet,
    sample_tables,
    telemetry,
)
from tests.graph.test_missing_data import inputs

REGISTRIES = Registries()
BUILDER = GraphBuilder(REGISTRIES)


def check(graph, run, packet, tables):
    """Compare every node and edge row of ``graph`` with the plain computation."""
    plain = RowByRow(graph, run, packet, tables, REGISTRIES)
    for node_type in NODES:
        np.testing.assert_allclose(graph.x_dict[node_type], plain.x(node_type), rtol=1e-6, atol=1e-6)
    for relation in RELATIONS:
        expected = plain.edge_attr(relation)
        np.testing.assert_allclose(graph.edge_attr_dict[relation.edge_type], expected, rtol=1e-6, atol=1e-6)
        forward, reverse = (graph.topology.edges[key] for key in (relation.edge_type, relation.reverse_type))
        row_of = {pair: row for row, pair in enumerate(zip(forward.source, forward.target, strict=True))}
        turned = [row_of[pair] for pair in zip(reverse.target, reverse.source, strict=True)]
        np.testing.assert_allclose(graph.edge_attr_dict[relation.reverse_type], expected[turned], atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(inputs(), st.integers(1, 3))
def test_every_row_is_what_the_tables_say(given_inputs, steps):
    run, packet, tables = given_inputs
    for _ in range(steps):
        with np.errstate(over="ignore"):
            check(BUILDER.build(run, packet, tables), run, packet, tables)
        norms.observe(run.norms, BUILDER.samples(run, packet))


def test_steps_that_change_in_kind_leave_nothing_behind():
    blueprint = sample_blueprint()
    tables = sample_tables(blueprint)
    run = sample_run(sample_seed(), sample_seed("seed1", monitored_layers=None))
    edges = telemetry(EdgeTelemetry, 6)
    changes = [{}, {"layers": None}, {"edges": edges}, {"training_loss": None}, {"activations": None}, {}]
    for step, change in enumerate(changes * 2):
        packet = sample_packet(blueprint, step=step, seed=step, **change)
        if step == 4:
            tables.add_sheet(sample_sheet("host", risk_score=0.9))
        if step == 6:
            run.seeds["seed0"] = sample_seed(alpha=0.9, gradient_norm=None)
        check(BUILDER.build(run, packet, tables), run, packet, tables)
        norms.observe(run.norms, BUILDER.samples(run, packet))


def test_masks_follow_a_column_that_empties_and_fills_again():
    blueprint = sample_blueprint()
    tables, run = sample_tables(blueprint), sample_run(sample_seed())
    whole = sample_packet(blueprint)
    for missing in (0, 6, 0, 2, 0, 6, 2, 6):
        latency, update = whole.layers.latency_ms.copy(), whole.parameters.update_magnitude.copy()
        latency[:missing], update[: missing // 3] = np.nan, np.nan
        packet = msgspec.structs.replace(
            whole,
            layers=msgspec.structs.replace(whole.layers, latency_ms=latency),
            parameters=msgspec.structs.replace(whole.parameters, update_magnitude=update),
        )
        check(BUILDER.build(run, packet, tables), run, packet, tables)


def test_a_published_value_is_normalised_with_what_the_run_has_learnt_since():
    layers = BlueprintLayers(layer_id=["a", "b"], type=["linear"] * 2, weight_norm=[1.0, 2.0])
    blueprint = sample_blueprint(2, layer_columns=layers)
    run, tables = sample_run(), sample_tables(blueprint)
    packet = sample_packet(blueprint, layers=None)
    for mean in (0.5, 1.5):
        run.norms = {"layer_weight_norm": EwmaNorm(mean, 1.0)}
        graph = BUILDER.build(run, packet, tables)
        check(graph, run, packet, tables)
        assert graph.x_dict["layer"][:, NODES["layer"].slots["weight_norm"].start].tolist() == [1 - mean, 2 - mean]


def test_a_graph_of_more_rows_than_are_written_at_a_time_is_written_whole():
    blueprint, packet, seeds = synthetic_run(2_000, 3_000)
    run, tables = sample_run(*seeds), synthetic_tables(blueprint)
    check(BUILDER.build(run, packet, tables), run, packet, tables)
