"""The table of metrics: complete, without doubles, and what the reference page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tamiyo_stream.hub.step_telemetry import StepMeasurements
from tamiyo_stream.hub.taxonomy import METRICS, NOT_SENT, STEP_METRICS, render_reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "telemetry.md"
#: domain.md §6.2, and what the requirements add.
REQUIRED = [
    "tamiyo.validation_loss",
    "tamiyo.loss_delta",
    "tamiyo.conservative_mode",
    "tamiyo.inference.latency_ms",
    "tamiyo.gnn.inference.latency_ms",
    "tamiyo.gnn.compile_enabled",
    "tamiyo.gnn.compile_warm_ms",
    "tamiyo.gnn.compile_fallback_total",
    "tamiyo.policy.value_estimate",
    "tamiyo.policy.risk_index",
    "tamiyo.policy.risk_score",
    "tamiyo.gnn.feature_coverage",
    "tamiyo.gnn.feature_coverage.<type>",
    "tamiyo.blending.method_index",
    "tamiyo.blending.schedule_start",
    "tamiyo.blending.schedule_end",
    "tamiyo.selection.seed_index",
    "tamiyo.selection.blueprint_index",
    "tamiyo.selection.seed_score",
    "tamiyo.breaker.<component>_state",
    "tamiyo.breaker.<component>_failures",
    "tamiyo.blueprint.risk",
    "tamiyo.field_reports.published_total",
    "tamiyo.field_reports.retries_total",
    "tamiyo.field_reports.dropped_total",
    "tamiyo.field_reports.pending_total",
    "tamiyo.gnn.bsds_missing",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_every_required_metric_is_in_the_table(name: str) -> None:
    assert name in {one for metric in METRICS for one in metric.names}


def test_no_name_stands_for_two_figures() -> None:
    names = [name for metric in METRICS for name in metric.names]
    assert len(names) == len(set(names))
    assert not set(names) & {name for name, _ in NOT_SENT}


def test_every_field_of_the_table_is_a_measurement() -> None:
    fields = set(StepMeasurements.__dataclass_fields__)
    assert {metric.field for metric in STEP_METRICS if metric.field} <= fields


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_reference(), "write taxonomy.render_reference() to the page"
