"""Normalisation: priors, the moving statistics' rule, and what never updates them (requirements 000 §3)."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.graph.features import NODES, Transform
from tamiyo_stream.graph.relations import RELATIONS
from tamiyo_stream.runs import norms
from tamiyo_stream.runs.state import EwmaNorm


def column(*values: float) -> norms.FloatArray:
    return np.array(values, dtype=np.float32)


def test_given_priors_are_those_of_the_requirements():
    given = {name: (norms.PRIORS[name].mean, norms.PRIORS[name].std) for name in ("loss", "gradient_norm")}
    assert given == {"loss": (0.8, 0.3), "gradient_norm": (1.0, 0.5)}
    assert (norms.PRIORS["samples_per_s"].mean, norms.PRIORS["samples_per_s"].std) == (4500.0, 500.0)
    assert (norms.PRIORS["hook_latency_ms"].mean, norms.PRIORS["hook_latency_ms"].std) == (12.0, 6.0)
    assert (norms.PRIORS["momentum"].mean, norms.PRIORS["momentum"].std) == (0.9, 0.05)
    assert norms.PRIORS["parameter_count"].given == (1.0, 0.4)
    assert norms.PRIORS["learning_rate"].given == (0.01, 0.005)
    assert norms.PRIORS["gradient_variance"].given == (0.001, 0.0005)


def test_every_prior_that_the_tables_name_exists_on_the_right_scale():
    declared = [
        *(c for schema in NODES.values() for c in schema.channels),
        *(a for r in RELATIONS for a in r.attributes),
    ]
    named = {(entry.prior, entry.transform) for entry in declared if entry.prior}
    assert {name for name, _ in named} == set(norms.PRIORS)
    for name, transform in named:
        assert norms.PRIORS[name].log1p == (transform is Transform.LOG1P_Z), name


def test_a_million_parameters_lie_within_two_standard_deviations():
    scores = norms.log1p_z("parameter_count", column(1e2, 1e6, 1e7))
    assert np.abs(scores).max() < 2.0


def test_sequence_follows_the_hand_computed_moving_statistics():
    state = {"loss": EwmaNorm(0.8, 0.09)}
    norms.observe(state, {"loss": column(1.8)})  # d = 1
    assert state["loss"].mean == pytest.approx(0.9)
    assert state["loss"].var == pytest.approx(0.9 * (0.09 + 0.1))
    norms.observe(state, {"loss": column(0.4)})  # d = -0.5
    assert state["loss"].mean == pytest.approx(0.85)
    assert state["loss"].var == pytest.approx(0.9 * (0.9 * (0.09 + 0.1) + 0.1 * 0.25))
    assert state["loss"].count == 2


def test_first_sample_starts_from_the_prior():
    state: dict[str, EwmaNorm] = {}
    norms.observe(state, {"gradient_norm": column(2.0)})
    assert state["gradient_norm"].mean == pytest.approx(1.1)
    assert state["gradient_norm"].var == pytest.approx(0.9 * (0.25 + 0.1))


def test_column_is_one_update_with_the_means_over_its_finite_values():
    state = {"loss": EwmaNorm(1.0, 1.0)}
    norms.observe(state, {"loss": column(2.0, 4.0, math.nan, math.inf)})  # d = 1, 3
    assert state["loss"].mean == pytest.approx(1.2)
    assert state["loss"].var == pytest.approx(0.9 * (1.0 + 0.1 * 5.0))
    assert state["loss"].count == 1


@pytest.mark.parametrize("values", [(), (math.nan,), (math.inf, -math.inf)])
def test_missing_and_non_finite_samples_never_update(values):
    state = {"loss": EwmaNorm(0.8, 0.09)}
    norms.observe(state, {"loss": column(*values)})
    assert state == {"loss": EwmaNorm(0.8, 0.09)}
    fresh: dict[str, EwmaNorm] = {}
    norms.observe(fresh, {"loss": column(*values)})
    assert fresh == {}


@pytest.mark.parametrize("state", [{}, {"loss": EwmaNorm(0.8, 0.09)}])
def test_sample_whose_square_overflows_never_updates(state):
    before = dict(state)
    norms.observe(state, {"loss": np.array([1e200])})
    assert state == before


def test_zero_is_a_sample():
    state = {"loss": EwmaNorm(1.0, 1.0)}
    norms.observe(state, {"loss": column(0.0)})
    assert state["loss"].mean == pytest.approx(0.9)


def test_variance_never_falls_below_epsilon():
    state = {"loss": EwmaNorm(1.0, 1e-6)}
    for _ in range(50):
        norms.observe(state, {"loss": column(1.0)})
    assert state["loss"].var == norms.EPSILON


def test_score_uses_the_runs_statistics_and_else_the_prior():
    assert norms.z_score({}, "loss", column(1.1)) == pytest.approx([1.0])
    assert norms.z_score({"loss": EwmaNorm(1.0, 4.0)}, "loss", column(3.0)) == pytest.approx([1.0])


def test_score_is_clipped_and_keeps_nan():
    scores = norms.z_score({}, "loss", column(1e30, -1e30, math.nan))
    assert scores[:2].tolist() == [norms.Z_LIMIT, -norms.Z_LIMIT]
    assert math.isnan(scores[2])


def test_scoring_changes_no_statistics():
    state = {"loss": EwmaNorm(0.8, 0.09)}
    norms.z_score(state, "loss", column(5.0))
    assert state == {"loss": EwmaNorm(0.8, 0.09)}


def test_unknown_metric_is_named():
    with pytest.raises(norms.UnknownMetric, match="sparkle"):
        norms.z_score({}, "sparkle", column(1.0))
    with pytest.raises(norms.UnknownMetric, match="sparkle"):
        norms.observe({}, {"sparkle": column(1.0)})


def test_export_is_sorted_plain_json():
    exported = norms.export_norms({"loss": EwmaNorm(1.0, 2.0, 3), "gradient_norm": EwmaNorm(0.5, 0.25, 1)})
    assert list(exported) == ["gradient_norm", "loss"]
    assert exported["loss"] == {"mean": 1.0, "var": 2.0, "count": 3}


_any_norm = st.builds(
    EwmaNorm,
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(min_value=norms.EPSILON, allow_infinity=False),
    st.integers(0, 2**53),
)


@given(st.dictionaries(st.sampled_from(sorted(norms.PRIORS)), _any_norm))
def test_restore_is_the_inverse_of_export_even_through_json(state):
    assert norms.restore_norms(norms.export_norms(state)) == state
    assert norms.restore_norms(json.loads(json.dumps(norms.export_norms(state)))) == state


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "norms is no object"),
        ({"sparkle": {"mean": 1.0, "var": 1.0, "count": 0}}, "norms.sparkle names a metric that has no prior"),
        ({"loss": 1.0}, "norms.loss has other fields than mean, var, count"),
        ({"loss": {"mean": 1.0, "var": 1.0}}, "norms.loss has other fields"),
        ({"loss": {"mean": 1.0, "var": 1.0, "count": 0, "std": 1.0}}, "norms.loss has other fields"),
        ({"loss": {"mean": math.nan, "var": 1.0, "count": 0}}, "norms.loss.mean is nan"),
        ({"loss": {"mean": "1", "var": 1.0, "count": 0}}, "norms.loss.mean is '1'"),
        ({"loss": {"mean": True, "var": 1.0, "count": 0}}, "norms.loss.mean is True"),
        ({"loss": {"mean": 10**400, "var": 1.0, "count": 0}}, "norms.loss.mean is 1000"),
        ({"loss": {"mean": 1.0, "var": 0.0, "count": 0}}, "norms.loss.var is 0.0"),
        ({"loss": {"mean": 1.0, "var": -1.0, "count": 0}}, "norms.loss.var is -1.0"),
        ({"loss": {"mean": 1.0, "var": math.inf, "count": 0}}, "norms.loss.var is inf"),
        ({"loss": {"mean": 1.0, "var": None, "count": 0}}, "norms.loss.var is None"),
        ({"loss": {"mean": 1.0, "var": 1.0, "count": -1}}, "norms.loss.count is -1"),
        ({"loss": {"mean": 1.0, "var": 1.0, "count": 1.0}}, "norms.loss.count is 1.0"),
        ({"loss": {"mean": 1.0, "var": 1.0, "count": True}}, "norms.loss.count is True"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused_and_named(data, named):
    with pytest.raises(norms.NormsCorrupt, match=rf"^{re.escape(named)}.*delete it to start from the priors"):
        norms.restore_norms(data)
