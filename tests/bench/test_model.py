"""The model benchmark runs end to end on a small graph, and its figures hang together."""

from __future__ import annotations

import pytest
import torch

from tamiyo_stream.bench import model
from tamiyo_stream.bench.model import MAX_PAIRS, model_figures
from tamiyo_stream.bench.performance_page import TOPICS, performance_page
from tamiyo_stream.bench.resident import evaluate, main, peak_rss_mb


@pytest.fixture(scope="module")
def figures():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "peak_rss_mb", evaluate)  # in this process: starting two takes longer than all else
        yield model_figures(80, 500, precision="bf16", batch=3, passes=3)
    torch.set_num_threads(threads)


def test_the_options_and_the_machine_are_named(figures) -> None:
    assert figures["options"] == "--nodes 80 --edges 500 --threads 1 --precision bf16 --batch 3"
    assert figures["machine.cpu"]


def test_the_graph_is_what_was_built_not_what_was_asked_for(figures) -> None:
    assert figures["graph.nodes"] == pytest.approx(80, rel=0.1)
    assert figures["graph.edges"] == pytest.approx(500, rel=0.3)


def test_times_are_positive_and_ratios_come_from_pairs(figures) -> None:
    for figure in ("reference.p50_ms", "plan.p50_ms", "plan.cpu_ms", "plan_build.p50_ms", "stolen_core.p50_ms"):
        assert figures[figure] > 0
    assert figures["reference_over_plan.pairs"] == min(3, MAX_PAIRS)
    for name in ("reference_over_plan", "one_by_one_over_batched"):
        assert figures[f"{name}.low"] <= figures[f"{name}.median"] <= figures[f"{name}.high"]


def test_the_error_of_every_head_is_within_the_precision(figures) -> None:
    errors = {name: value for name, value in figures.items() if name.startswith("error.")}
    assert len(errors) == 13
    assert 0 < figures["error.max"] <= 2e-2
    assert figures["error.max"] == max(errors.values())


def test_the_distance_from_the_limits_comes_with_counts_and_rates(figures) -> None:
    for figure in (
        "plan.gflop",
        "plan.moved_gb",
        "roofline.gemm_gflops",
        "roofline.copy_gb_s",
        "roofline.floor_ms",
    ):
        assert figures[figure] > 0
    assert figures["plan_over_floor.low"] <= figures["plan_over_floor.median"] <= figures["plan_over_floor.high"]


def test_shares_of_time_add_up_and_products_are_found(figures) -> None:
    shares = {name: value for name, value in figures.items() if name.startswith("share.")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["share.products"] > 0.05
    assert shares["share.bags"] > 0
    assert shares["share.layer_norm"] > 0


def test_memory_and_loop_lag_are_figures(figures) -> None:
    assert figures["plan.peak_rss_mb"] > 100
    assert figures["loop_lag.ticks"] > 0


def test_every_figure_of_the_page_is_one_that_is_measured(figures) -> None:
    shown = {figure for topic in TOPICS for figure, _ in topic.columns.values() if not figure.startswith("cuda.")}
    assert shown <= figures.keys()
    assert "bench model --nodes 80" in performance_page([figures])


def test_one_graph_is_not_compared_with_a_batch() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "peak_rss_mb", evaluate)
        alone = model_figures(40, 200, passes=2)
    assert not [name for name in alone if name.startswith(("batching.", "one_by_one"))]


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = b"x" * (600 * 2**20)  # a parent's memory must not count
    assert 100 < peak_rss_mb(40, 200, 1, "plan", "fp32") < 600
    assert len(ballast) == 600 * 2**20


def test_the_process_prints_its_figure(capsys) -> None:
    main(["40", "200", "1", "reference", "fp32"])
    assert float(capsys.readouterr().out) > 100
