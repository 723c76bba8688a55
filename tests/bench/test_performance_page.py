"""The page shows what was measured, the command beside each figure, and nothing that was not measured."""

from __future__ import annotations

import pytest

from tamiyo_stream.bench.performance_page import TOPICS, performance_page

MEASURED = {
    "options": "--nodes 1000 --threads 1",
    "machine.cpu": "a processor",
    "machine.torch": "2.13",
    "graph.nodes": 1004,
    "reference.p50_ms": 98.04,
    "plan.p50_ms": 9.876,
    "reference_over_plan.median": 9.94,
    "products": "onednn",
    "share.products": 0.514,
}


def section(page: str, title: str) -> str:
    return page.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def test_figures_are_rounded_and_stand_beside_their_command() -> None:
    table = section(performance_page([MEASURED]), "Plan against reference")
    assert "| 1,004 |" in table
    assert "| 98.0 | 9.88 |" in table
    assert "| 9.9 |" in table
    assert "`tamiyo-stream bench model --nodes 1000 --threads 1`" in table


def test_text_figures_and_shares_are_shown() -> None:
    page = performance_page([MEASURED])
    assert "| onednn |" in section(page, "Distance to the machine's limit")
    assert "| 51% |" in section(page, "Where the time goes")


def test_what_was_not_measured_is_left_out() -> None:
    page = performance_page([MEASURED, {"options": "--nodes 7", "cuda.graphs.p50_ms": 0.5}])
    assert "## Micro-batches" not in page
    assert "--nodes 7" not in section(page, "Plan against reference")
    assert "--nodes 7" in section(page, "CUDA")


def test_a_row_per_measurement() -> None:
    page = performance_page([MEASURED, MEASURED | {"options": "--nodes 9", "plan.p50_ms": 1.0}])
    assert section(page, "Plan against reference").count("`tamiyo-stream bench model") == 2


def test_every_machine_is_named_once() -> None:
    page = performance_page([MEASURED, MEASURED, MEASURED | {"machine.cpu": "another"}])
    assert "| CPU | a processor, another |" in page


def test_every_table_is_well_formed() -> None:
    everything = {figure: 1.0 for topic in TOPICS for figure, _ in topic.columns.values()} | {"options": "-"}
    for topic in TOPICS:
        rows = [line for line in section(performance_page([everything]), topic.title).splitlines() if "|" in line]
        assert {row.count("|") for row in rows} == {len(topic.columns) + 2}
        assert len(rows) == 3


def test_no_results_are_refused() -> None:
    with pytest.raises(ValueError, match="results is empty"):
        performance_page([])
