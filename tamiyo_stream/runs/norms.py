"""Normalisation statistics: the priors and the moving means and variances of a run (requirements ``000``).

A value is normalised with the statistics *before* it is observed, so that no sample scores itself. What is missing
or not finite never updates anything: an absent metric must not drag a mean towards zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo_stream.runs.state import EwmaNorm

FloatArray = npt.NDArray[np.float32]

ALPHA = 0.1
EPSILON = 1e-6
#: Scores are clipped here: six standard deviations is "off the scale", and one outlier must not swamp an encoder.
Z_LIMIT = 6.0


class NormsCorrupt(ValueError):
    """Saved statistics cannot be used; taking what is legible would normalise a run by half a table."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where} {problem}; restore it from a backup or a checkpoint, or delete it to start from the priors"
        )
        self.where = where


class UnknownMetric(KeyError):
    """No prior and no statistics exist under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no normalisation prior named {name!r}; add it to PRIORS in tamiyo_stream/runs/norms.py")


@dataclass(frozen=True, slots=True)
class Prior:
    """Mean and standard deviation of a metric before anything was measured.

    ``log1p``: they describe log1p of the value. ``given``: the requirements' pair, where ours replaces it.
    ``span``: the orders of magnitude, from and to, over which ours was fitted.
    """

    mean: float
    std: float
    origin: str
    log1p: bool = False
    given: tuple[float, float] | None = None
    span: tuple[float, float] | None = None


def _spread(low: float, high: float, origin: str, given: tuple[float, float] | None = None) -> Prior:
    """Prior of log1p(v) for v spread evenly over the orders of magnitude from ``low`` to ``high``."""
    grid = np.log1p(np.geomspace(low, high, 1001))
    return Prior(float(grid.mean()), float(grid.std()), origin, log1p=True, given=given, span=(low, high))


_REQUIRED = "requirements 000"
_PROTOTYPE = "prototype (domain.md B4)"
#: The requirements ask for log1p priors "derived from catalogue snapshots" and give placeholders, under which a
#: layer of a million weights lies 32 standard deviations out. They are refitted by one rule: the mean and standard
#: deviation of log1p(v) for v spread evenly over the orders of magnitude of a span. The moments of a sample of
#: models would be those of its most frequent layer; an even spread tells a small value from a large one in every
#: kind of host. ``python -m tamiyo_stream.bench.fit_priors`` holds them against host models of 0.5 to 124 million
#: weights and their training: no value found is clipped, and the mean of each sample lies within a standard
#: deviation of the prior's (log1p of parameter_count: 10.6 ± 3.8 found, 10.4 ± 3.3 here).
_REFITTED = "refitted: evenly over the orders of magnitude of the span; see tamiyo_stream.bench.fit_priors"
#: Nothing shows these before something goes wrong.
_STATED = "stated: the span in which values differ in meaning"

#: Priors by metric name; ``Channel.prior`` and ``Attribute.prior`` are keys of it.
PRIORS: dict[str, Prior] = {
    # Moving statistics start here.
    "loss": Prior(0.8, 0.3, _REQUIRED),
    "gradient_norm": Prior(1.0, 0.5, _REQUIRED),
    "samples_per_s": Prior(4500.0, 500.0, _REQUIRED),
    "hook_latency_ms": Prior(12.0, 6.0, _REQUIRED),
    "layer_latency": Prior(6.0, 2.0, _PROTOTYPE),
    "layer_weight_norm": Prior(1.0, 0.4, _PROTOTYPE),
    "layer_gradient_norm": Prior(0.8, 0.4, _PROTOTYPE),
    "seed_age": Prior(10.0, 4.0, _PROTOTYPE),
    "seed_gradient_norm": Prior(1.0, 0.5, "as gradient_norm"),
    "update_magnitude": Prior(1e-3, 1e-3, "the ratio |step| / |weights| of a healthy run is about 1e-3"),
    "convergence_rate": Prior(0.0, 0.1, "a relative change per step, 0 at rest"),
    # Fixed.
    "momentum": Prior(0.9, 0.05, _REQUIRED),
    "parameter_count": _spread(1e2, 1e7, _REFITTED, given=(1.0, 0.4)),
    "learning_rate": _spread(1e-5, 1e-1, _REFITTED, given=(0.01, 0.005)),
    # Healthy hosts stay below 1e-2; the upper end is where gradients explode.
    "gradient_variance": _spread(1e-8, 1e2, _REFITTED, given=(0.001, 0.0005)),
    "channels": _spread(1e0, 1e4, _REFITTED),
    "data_flow_volume": _spread(1e3, 1e9, _REFITTED),
    "activation_cost": _spread(1e0, 1e3, _REFITTED),  # the probe's table ends at 10, the prototype's mean is 128
    "saturation_events": _spread(1e0, 1e3, _STATED),
    "cooldown_ms": _spread(1e1, 1e5, _STATED),
    "sla_breaches": _spread(1e0, 1e3, _STATED),
}


def moments(norms: Mapping[str, EwmaNorm], name: str) -> tuple[float, float]:
    """Return mean and standard deviation (> 0) of ``name``: the run's where it has some, else the prior's.

    Raises:
        UnknownMetric: neither exists.
    """
    norm = norms.get(name)
    if norm is not None:
        return norm.mean, math.sqrt(max(norm.var, EPSILON))
    return prior_moments(name)


def prior_moments(name: str) -> tuple[float, float]:
    """Return mean and standard deviation of the fixed prior ``name``.

    Raises:
        UnknownMetric: no such prior.
    """
    prior = PRIORS.get(name)
    if prior is None:
        raise UnknownMetric(name)
    return prior.mean, prior.std


def z_score(norms: Mapping[str, EwmaNorm], name: str, values: FloatArray) -> FloatArray:
    """Return ``values`` (any shape) in standard deviations of ``name``, clipped to ±:data:`Z_LIMIT`.

    NaN stays NaN.

    Raises:
        UnknownMetric: ``name`` has neither statistics nor a prior.
    """
    return _score(np.asarray(values, dtype=np.float64), *moments(norms, name))


def log1p_z(name: str, values: FloatArray) -> FloatArray:
    """Return the clipped z-score of ``log1p(values)`` under the fixed prior ``name``. NaN stays NaN, below 0 is 0.

    Raises:
        UnknownMetric: no such prior.
    """
    return _score(np.log1p(np.maximum(np.asarray(values, dtype=np.float64), 0.0)), *prior_moments(name))


def observe(norms: dict[str, EwmaNorm], samples: Mapping[str, FloatArray]) -> None:
    """Update ``norms`` in place with one step's ``samples`` (arrays of any shape, by metric name).

    Per metric, over its finite values: d = x - mean; mean += α d; var = max(ε, (1 - α)(var + α d²)), where a
    column of values is one update with the means of d and d². No finite value, no update; nor one whose square
    overflows: an infinite variance would never come down again.

    Raises:
        UnknownMetric: a metric has neither statistics nor a prior.
    """
    for name, values in samples.items():
        column = np.asarray(values, dtype=np.float64)
        finite = column[np.isfinite(column)]
        if not finite.size:
            continue
        norm = norms.get(name)
        if norm is None:
            mean, std = prior_moments(name)
            norm = EwmaNorm(mean, std * std)
        with np.errstate(over="ignore"):
            deviation = finite - norm.mean
            mean = norm.mean + ALPHA * float(np.mean(deviation))
            var = (1.0 - ALPHA) * (norm.var + ALPHA * float(np.mean(deviation * deviation)))
        if math.isfinite(mean) and math.isfinite(var):
            norms[name] = EwmaNorm(mean, max(EPSILON, var), norm.count + 1)


def export_norms(norms: Mapping[str, EwmaNorm]) -> dict[str, dict[str, float | int]]:
    """Return ``norms`` as plain JSON: ``{name: {mean, var, count}}``, sorted by name (``gnn_norms.json``)."""
    return {
        name: {"mean": norm.mean, "var": norm.var, "count": norm.count} for name, norm in sorted(norms.items())
    }


def restore_norms(data: Any, *, where: str = "norms") -> dict[str, EwmaNorm]:
    """Return the statistics that :func:`export_norms` wrote as ``data``; its strict inverse.

    Args:
        data: plain JSON, ``{name: {mean, var, count}}``.
        where: what an error calls it.

    Raises:
        NormsCorrupt: a name without a prior, a field missing or added, a mean that is not finite, a variance that
            is not finite and positive, or a count below 0; the field is named.
    """
    if not isinstance(data, Mapping):
        raise NormsCorrupt(where, "is no object of metric names")
    return {name: _restored(entry, name, f"{where}.{name}") for name, entry in data.items()}


def _restored(entry: Any, name: str, where: str) -> EwmaNorm:
    if name not in PRIORS:
        raise NormsCorrupt(where, "names a metric that has no prior")
    if not isinstance(entry, Mapping) or set(entry) != set(EwmaNorm.__struct_fields__):
        raise NormsCorrupt(where, f"has other fields than {', '.join(EwmaNorm.__struct_fields__)}")
    mean, var, count = _finite(entry["mean"]), _finite(entry["var"]), entry["count"]
    if mean is None:
        raise NormsCorrupt(f"{where}.mean", f"is {entry['mean']!r}, not a finite number")
    if var is None or var <= 0.0:
        raise NormsCorrupt(f"{where}.var", f"is {entry['var']!r}, not a finite number above 0")
    if type(count) is not int or count < 0:
        raise NormsCorrupt(f"{where}.count", f"is {count!r}, not a whole number of 0 or more")
    return EwmaNorm(mean, var, count)


def _finite(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _score(values: npt.NDArray[np.float64], mean: float, std: float) -> FloatArray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.clip((values - mean) / std, -Z_LIMIT, Z_LIMIT).astype(np.float32)
