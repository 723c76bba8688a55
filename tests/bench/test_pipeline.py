"""The pipeline benchmark runs a whole worker process once, and its figures hang together."""

from __future__ import annotations

import pytest

from tamiyo_stream.bench.pipeline import pipeline_figures


@pytest.fixture(scope="module")
def figures():
    return pipeline_figures(60, 12, 300, 0.3)


def test_latency_is_counted_from_the_xadd_and_holds_the_workers_own(figures) -> None:
    assert figures["steps"] == 12
    waited, stated = figures["xadd_to_command_ms"], figures["decision_latency_ms"]
    assert 0 < waited["p50"] <= waited["p95"]
    assert 0 < stated["p50"] < waited["p50"]
    assert figures["worker_cpu_ms_per_step"] > 0


def test_the_graph_is_about_as_large_as_asked_for(figures) -> None:
    assert figures["nodes"] == pytest.approx(60, rel=0.2)


def test_every_small_message_was_committed(figures) -> None:
    rates, shares = figures["small_messages_per_s"], figures["small_messages_per_commit"]
    assert all(rate > 0 for rate in rates.values())
    assert 1 <= shares["64 runs"] < shares["1 runs"] <= figures["small_messages"]


def test_an_idle_bus_leaves_the_worker_idle_most_of_the_time(figures) -> None:
    assert 0 <= figures["idle_cpu_percent_of_a_core"] < 100
