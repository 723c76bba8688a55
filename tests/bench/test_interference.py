"""What runs beside a forward is started, watched and ended."""

from __future__ import annotations

import subprocess

import pytest

from tamiyo_stream.bench import interference
from tamiyo_stream.bench.graphs import step_graphs
from tamiyo_stream.bench.interference import loop_lag, one_by_one, stolen_core
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.model.network import build_network


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(build_network(), policy_version="v", policy_digest="d")


def test_the_busy_neighbour_runs_inside_the_block_only(monkeypatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(interference.subprocess, "Popen", Noted)
    with stolen_core():
        assert started[0].poll() is None
    assert started[0].returncode is not None


def test_the_busy_neighbour_ends_also_when_the_measurement_fails(monkeypatch) -> None:
    monkeypatch.setattr(interference.time, "sleep", lambda _: 1 / 0)
    ended: list[int] = []
    monkeypatch.setattr(
        interference.subprocess.Popen, "kill", lambda process: ended.append(process.pid) or process.terminate()
    )
    with pytest.raises(ZeroDivisionError), stolen_core():
        pass
    assert len(ended) == 1


def test_the_loop_ticks_while_forwards_run(engine: InferenceEngine) -> None:
    (graph,) = step_graphs(200, 1000, 1)
    idle, busy = loop_lag(engine, graph, 5)
    assert len(idle) > 1
    assert busy
    assert min(idle + busy) > -1


def test_one_by_one_is_a_batch_for_each_graph(engine: InferenceEngine) -> None:
    graphs = step_graphs(60, 300, 3)
    before = engine.statistics().plans
    one_by_one(engine, graphs)
    after = engine.statistics().plans
    assert (after.hits + after.misses) - (before.hits + before.misses) == 3


def test_step_graphs_have_every_relation_and_their_own_structure() -> None:
    first, second = step_graphs(300, 3000, 2)
    assert all(len(edges) for edges in first.topology.edges.values())
    assert first.topology.structure_hash != second.topology.structure_hash
    assert first.topology.num_edges == pytest.approx(3000, rel=0.1)
    assert not first.problems
