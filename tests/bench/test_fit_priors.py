"""The fixed priors fit host models, and where they come from can be computed again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tamiyo_stream.bench.fit_priors import fits, structure_values, training_values
from tamiyo_stream.bench.hosts import HOSTS
from tamiyo_stream.runs.norms import PRIORS, Z_LIMIT, log1p_z

MEASURED = {
    "parameter_count", "learning_rate", "gradient_variance", "channels", "data_flow_volume", "activation_cost",
}  # fmt: skip
STATED = {"saturation_events", "cooldown_ms", "sla_breaches"}


@pytest.fixture(scope="module")
def values():
    """What the structures and schedules of all hosts show."""
    return structure_values()


@pytest.fixture(scope="module")
def trained():
    """What a few steps of the smallest host show."""
    return training_values(HOSTS[:1], steps=6)


def test_every_fitted_prior_is_measured_or_says_that_it_is_stated(values, trained):
    assert set(values) | set(trained) == MEASURED
    fitted = {name for name, prior in PRIORS.items() if prior.span is not None}
    assert fitted == MEASURED | STATED == {name for name, prior in PRIORS.items() if prior.log1p}
    assert {name for name, prior in PRIORS.items() if prior.origin.startswith("stated")} == STATED


@pytest.mark.parametrize("name", sorted(MEASURED | STATED))
def test_moments_are_those_of_log1p_over_the_orders_of_magnitude_of_the_span(name):
    prior = PRIORS[name]
    exponents = np.linspace(*np.log10(prior.span), 1001)
    assert prior.mean == pytest.approx(np.log1p(10**exponents).mean())
    assert prior.std == pytest.approx(np.log1p(10**exponents).std())


def test_no_value_of_a_host_is_clipped_and_the_means_agree(values, trained):
    report = fits(values | trained)
    assert len(report) == len(MEASURED)
    assert all(fit.fits for fit in report), [fit for fit in report if not fit.fits]


def test_the_hosts_are_of_very_different_size(values):
    found = {fit.name: (fit.least, fit.greatest) for fit in fits(values)}
    assert found["parameter_count"] == (0.0, 124_439_808.0)
    assert found["channels"] == (3.0, 50_257.0)
    assert found["data_flow_volume"] == (64 * 10 * 4, 8 * 1024 * 50_257 * 4)
    assert found["learning_rate"] == (pytest.approx(6e-6), pytest.approx(0.1))


def test_the_priors_that_were_given_would_have_clipped_the_hosts(values):
    report = {fit.name: fit for fit in fits(values)}
    assert report["parameter_count"].worst_given > 40.0
    assert report["learning_rate"].worst_given > Z_LIMIT
    assert math.isnan(report["channels"].worst_given)


def test_a_million_parameters_are_one_standard_deviation_out_not_32():
    mean, std = PRIORS["parameter_count"].given
    assert (math.log1p(1e6) - mean) / std == pytest.approx(32.0, abs=0.1)
    assert log1p_z("parameter_count", np.array([1e6]))[0] == pytest.approx(1.04, abs=0.01)


def test_a_value_far_from_a_prior_does_not_fit():
    assert not fits({"parameter_count": [1e15]})[0].fits
    assert not fits({"parameter_count": [1.0, 2.0]})[0].fits


def test_missing_values_are_left_out():
    assert fits({"channels": [math.nan, 64.0]})[0].count == 1
