"""Property: whatever optional data is missing, the graph is finite, of exact shape, and honest in its masks."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.record import column_types
from schemas.urza import Adjacency
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.features import NODES, Kind
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EDGE_TYPES
from tamiyo_stream.runs import norms
from tests.graph.samples import (
    sample_blueprint,
    sample_graph,
    sample_kernel,
    sample_packet,
    sample_run,
    sample_seed,
    sample_sheet,
    sample_tables,
)

REQUIRED = {"layer_id", "type", "activation_id", "parameter_id", "source", "target", "seed_id", "stage", "metrics"}


def thinned(draw, record):
    """``record`` with some optional fields absent and some elements of its columns NaN or infinite."""
    changes = {}
    columns = column_types(type(record))
    for name in record.__struct_fields__:
        current = getattr(record, name)
        if current is None or name in REQUIRED:
            continue
        if draw(st.booleans()):
            changes[name] = None
        elif name in columns and columns[name].wire_dtype.kind == "f":
            hole = draw(st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -1.0, 6e4]))
            if hole is not None:
                column = current.copy()
                column[: draw(st.integers(0, len(column)))] = hole
                changes[name] = column
    return msgspec.structs.replace(record, **changes)


@st.composite
def inputs(draw):
    full = sample_graph(draw(st.integers(1, 6)), draw(st.integers(0, 3)))
    lists = {name: getattr(full.adjacency, name) for name in Adjacency.__struct_fields__}
    graph = msgspec.structs.replace(
        full,
        layers=thinned(draw, full.layers),
        activations=thinned(draw, full.activations) if draw(st.booleans()) else None,
        parameters=thinned(draw, full.parameters) if draw(st.booleans()) else None,
        adjacency=Adjacency(**{name: edges if draw(st.booleans()) else None for name, edges in lists.items()}),
    )
    blueprint = msgspec.structs.replace(sample_blueprint(1), graph=graph)
    packet = sample_packet(blueprint if draw(st.booleans()) else sample_blueprint(4))
    groups = {name: getattr(packet, name) for name in ("layers", "activations", "parameters")}
    thin = {name: thinned(draw, columns) for name, columns in groups.items() if columns is not None}
    packet = msgspec.structs.replace(packet, **thin)
    dropped = draw(st.sets(st.sampled_from([*groups, "training_loss", "blueprint_version"])))
    metrics = {name: number for name, number in packet.training_metrics.items() if draw(st.booleans())}
    packet = msgspec.structs.replace(packet, training_metrics=metrics, **dict.fromkeys(dropped))
    seeds = [thinned(draw, sample_seed(f"seed{i}")) for i in range(draw(st.integers(0, 3)))]
    tables = sample_tables(blueprint if draw(st.booleans()) else None, draw(st.integers(0, 2)))
    if draw(st.booleans()):
        tables.sheets.clear()
    if draw(st.booleans()):
        tables.add_blueprint(sample_kernel("bare", descriptor=None, compiled=None))
        tables.add_sheet(sample_sheet("bare", risk_score=None, mitigation=None))
    return sample_run(*seeds), packet, tables


BUILDER = GraphBuilder(Registries())


@settings(max_examples=150, deadline=None)
@given(inputs())
def test_any_subset_of_the_optional_data_gives_a_valid_graph(given_inputs):
    run, packet, tables = given_inputs
    graph = BUILDER.build(run, packet, tables)
    counts = graph.topology.node_counts
    for node_type, schema in NODES.items():
        x = graph.x_dict[node_type]
        assert x.shape == (counts[node_type], schema.raw_width)
        assert np.isfinite(x).all()
        assert not x[:, schema.used_width :].any()
        check_masks(schema, x)
    for edge_type in EDGE_TYPES:
        rows = graph.edge_attr_dict[edge_type]
        assert rows.shape == (len(graph.topology.edges[edge_type]), BY_EDGE_TYPE[edge_type].width)
        assert np.isfinite(rows).all()
        for position in BY_EDGE_TYPE[edge_type].mask_slots.values():
            assert np.isin(rows[:, position], (0.0, 1.0)).all()
    assert all(0.0 <= share <= 1.0 for share in (*graph.coverage.keys.values(), *graph.coverage.types.values()))
    norms.observe(run.norms, BUILDER.samples(run, packet))
    assert all(math.isfinite(norm.mean) and norm.var > 0 for norm in run.norms.values())
    again = BUILDER.build(run, packet, tables)
    assert all(np.isfinite(x).all() for x in again.x_dict.values())


def check_masks(schema, x):
    """Masks are 0 or 1, and a missing value of its own mask holds the default."""
    for channel in schema.channels:
        position = schema.mask_slots.get(channel.name)
        if position is None:
            continue
        mask = x[:, position]
        assert np.isin(mask, (0.0, 1.0)).all()
        if not channel.mask_group and channel.kind is not Kind.MULTI_HOT:
            missing = x[mask == 0.0, schema.slots[channel.name].start]
            assert (missing == np.float32(channel.default)).all(), channel.name
