"""Step graphs for the benchmarks, built by the graph stage from a synthetic run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tamiyo_stream.bench.synthetic_run import synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.runs.state import RunState


def step_graphs(nodes: int, edges: int, count: int, seed: int = 0) -> Sequence[StepGraph]:
    """Return the graphs of ``count`` runs of about ``nodes`` nodes, each of its own structure.

    ``edges`` counts every edge, reverses included. Relations whose number follows from the nodes alone (context,
    feeds, tunes, …) come first, so a graph may have more.
    """
    graphs = []
    with tempfile.TemporaryDirectory() as folder:
        registries = Registries(Path(folder))
        for number in range(count):
            blueprint, packet, seeds = synthetic_run(nodes, edges // 2, seed=seed + number)
            run = RunState(run_id=f"run-{number}", seeds={item.seed_id: item for item in seeds})
            builder = GraphBuilder(registries)  # one each: graphs of one builder share their buffers
            graphs.append(builder.build(run, packet, synthetic_tables(blueprint)))
    return graphs
