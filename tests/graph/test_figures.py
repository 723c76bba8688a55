"""The figures of the graph stage: complete, plain JSON, and of the run they say they are of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tamiyo_stream.bench.graph import graph_figures
from tamiyo_stream.bench.synthetic_run import synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tests.graph.samples import sample_run


def test_every_figure_is_there_and_plain_json():
    figures = graph_figures(200, 1000, 3, large=(300, 2_000), runs=3)
    for name in ("packet_decode", "small_build", "run_build", "topology", "sampled_topology"):
        assert 0 < figures[f"{name}_p50_ms"] <= figures[f"{name}_p95_ms"]
    assert figures["runs"] == figures["runs_kept"] == 3
    assert figures["packet_bytes"] > 1000
    assert figures["topology_sampled_edges"] == 0
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(("nodes", "edges"), [(200, 1_000), (2_000, 10_000)])
def test_synthetic_run_has_the_size_asked_for_and_every_relation(nodes, edges):
    blueprint, packet, seeds = synthetic_run(nodes, edges)
    graph = GraphBuilder(Registries()).build(sample_run(*seeds), packet, synthetic_tables(blueprint))
    assert graph.problems == ()
    assert graph.topology.num_nodes == pytest.approx(nodes, abs=5)
    assert graph.topology.num_edges / 2 == pytest.approx(edges, rel=0.05)
    assert all(len(each) for each in graph.topology.edges.values())


def test_synthetic_runs_of_equal_arguments_are_equal():
    (one, first, _), (two, second, _) = (synthetic_run(100, 500, seed=3) for _ in range(2))
    assert np.array_equal(one.graph.adjacency.connects.source, two.graph.adjacency.connects.source)
    assert np.array_equal(first.layers.latency_ms, second.layers.latency_ms)
    other = synthetic_run(100, 500, seed=4)[0]
    assert not np.array_equal(one.graph.adjacency.connects.weight, other.graph.adjacency.connects.weight)
