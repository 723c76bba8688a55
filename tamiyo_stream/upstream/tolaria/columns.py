"""From measurements of steps to telemetry columns: sums over owners, moving statistics, newest sampled values.

Columns that cost a copy or a hook are measured on sampled steps and sent again in between. An element that was
never measured is NaN. A layer without weights has the norms of the empty set, 0, which is exact, not a stand-in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer

from schemas.enums import GradientInstability
from schemas.record import Float16Column, Float32Column, UInt8Column
from schemas.tolaria import ActivationTelemetry, LayerTelemetry, ParameterTelemetry
from tamiyo_stream.upstream.tolaria.activation_types import BY_NAME
from tamiyo_stream.upstream.tolaria.ewma import ALPHA, Ewma
from tamiyo_stream.upstream.tolaria.layout import Membership, TensorLayout
from tamiyo_stream.upstream.tolaria.observer import ActivationSample, Observation
from tamiyo_stream.upstream.tolaria.optimizer import learning_rate_of, momentum_of
from tamiyo_stream.upstream.tolaria.structure import ModelStructure
from tamiyo_stream.upstream.tolaria.updates import UpdateMeasurement

FloatArray = npt.NDArray[np.float64]

#: Gradient norms outside this range have exploded or vanished (the crucible's limits, domain.md §2.12).
EXPLODED_ABOVE = 1e3
VANISHED_BELOW = 1e-8
#: A norm this many times its moving mean explodes too, long before it reaches the limit.
EXPLODING_RATIO = 10.0
#: Standard deviation over mean of the gradient norm above which a layer oscillates.
OSCILLATING_SPREAD = 1.0
#: Steps before the moving statistics say anything about stability.
MIN_HISTORY = 8
#: Sampled steps that make up the interval of `saturation_events`.
SATURATION_INTERVAL = 16
_NOT_RATIOS = ("gradient_contribution", "saturation_events")


IndexArray = npt.NDArray[np.int64]


def positions_in(old: Sequence[object], new: Sequence[object]) -> IndexArray:
    """Return, per element of ``new``, its position in ``old``, -1 where it is not in it."""
    places = {element: position for position, element in enumerate(old)}
    return np.array([places.get(element, -1) for element in new], dtype=np.int64)


def _carried(previous: npt.ArrayLike, kept: IndexArray) -> FloatArray:
    """Return the elements ``kept`` of a column, NaN for those that are new."""
    carried = np.full(len(kept), np.nan)
    known = kept >= 0
    carried[known] = np.asarray(previous, dtype=np.float64)[kept[known]]
    return carried


class LayerColumns:
    """The columns of one blueprint version's layers."""

    def __init__(self, layout: TensorLayout) -> None:
        self._layers = layout.layers
        size = layout.layers.count
        self._gradients = Ewma(size)
        self._update_frequency = np.full(size, np.nan)
        unknown = np.full(size, np.nan)
        # Kept as columns, for most steps send them again unchanged.
        self._weight_norm, self._loss_contribution = Float32Column.of(unknown), Float32Column.of(unknown)
        self._latency_ms, self._volume = Float16Column.of(unknown), Float32Column.of(unknown)

    def inherit(self, previous: LayerColumns, kept: IndexArray) -> None:
        """Go on from the columns of the version before: layer *i* was its layer ``kept[i]``, -1 = it is new."""
        self._gradients.inherit(previous._gradients, kept)
        self._update_frequency = _carried(previous._update_frequency, kept)
        self._weight_norm = Float32Column.of(_carried(previous._weight_norm, kept))
        self._loss_contribution = Float32Column.of(_carried(previous._loss_contribution, kept))
        self._latency_ms = Float16Column.of(_carried(previous._latency_ms, kept))
        self._volume = Float32Column.of(_carried(previous._volume, kept))

    def update(self, measured: UpdateMeasurement, observed: Observation | None) -> LayerTelemetry:
        """Take in one step and return its columns."""
        gradient_norm = _norm(self._layers, measured.gradient_norm, measured.has_gradient)
        instability = classify(gradient_norm, self._gradients, self._layers.owned)
        self._gradients.update(gradient_norm)
        self._count_updates(measured)
        if measured.weight_norm is not None:
            everything = np.ones(len(measured.weight_norm), dtype=np.bool_)
            self._weight_norm = Float32Column.of(_norm(self._layers, measured.weight_norm, everything))
        if measured.loss_share is not None:
            shares = self._layers.sums(measured.loss_share, measured.has_gradient)
            self._loss_contribution = Float32Column.of(np.abs(shares))
        if observed is not None:
            self._latency_ms = Float16Column.of(observed.latency_ms)
            self._volume = Float32Column.of(observed.volume)
        return LayerTelemetry(
            gradient_norm=Float32Column.of(gradient_norm),
            gradient_variance=Float32Column.of(self._gradients.variance),
            gradient_instability=UInt8Column.of(instability),
            weight_norm=self._weight_norm,
            update_frequency=Float16Column.of(self._update_frequency),
            latency_ms=self._latency_ms,
            data_flow_volume=self._volume,
            loss_contribution=self._loss_contribution,
        )

    def _count_updates(self, measured: UpdateMeasurement) -> None:
        everything = np.ones(len(measured.written), dtype=np.bool_)
        changed = (self._layers.sums(measured.written.astype(np.float64), everything) > 0).astype(np.float64)
        known = np.isfinite(self._update_frequency)
        self._update_frequency = np.where(
            known, self._update_frequency + ALPHA * (changed - self._update_frequency), changed
        )


def classify(norms: FloatArray, history: Ewma, owned: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return the :class:`GradientInstability` number per layer: [layers].

    ``history`` is from before this step. Layers without weights, or without a gradient yet, are UNKNOWN; a
    gradient that is not finite has exploded, whatever the history.
    """
    usable = np.isfinite(norms)
    settled = history.count >= MIN_HISTORY
    with np.errstate(invalid="ignore"):
        spread = history.relative_spread() > OSCILLATING_SPREAD
        jumped = settled & (norms > EXPLODING_RATIO * history.mean)
    classes = np.zeros(len(norms), dtype=np.uint8)
    # Later rows overrule earlier ones.
    classes[settled] = GradientInstability.STABLE
    classes[settled & spread] = GradientInstability.OSCILLATING
    classes[usable & (norms < VANISHED_BELOW)] = GradientInstability.VANISHING
    classes[jumped | (usable & (norms > EXPLODED_ABOVE)) | (~usable & (history.count > 0))] = (
        GradientInstability.EXPLODING
    )
    classes[~owned] = GradientInstability.UNKNOWN
    return classes


class ActivationColumns:
    """The columns of one blueprint version's activations."""

    def __init__(self, structure: ModelStructure) -> None:
        self._kinds = [BY_NAME[activation.type] for activation in structure.activations]
        size = len(self._kinds)
        self._events: list[deque[bool]] = [deque(maxlen=SATURATION_INTERVAL) for _ in range(size)]
        self._scale = Ewma(size)
        self._columns: dict[str, FloatArray] = {
            name: np.full(size, np.nan)
            for name in (
                *("saturation_rate", "saturation_events", "activation_frequency", "gradient_flow"),
                *("gradient_contribution", "nonlinearity_strength", "stability"),
            )
        }
        self._telemetry = self._as_telemetry()

    def inherit(self, previous: ActivationColumns, kept: IndexArray) -> None:
        """Go on from the columns of the version before, as :meth:`LayerColumns.inherit` does."""
        self._scale.inherit(previous._scale, kept)
        self._columns = {name: _carried(values, kept) for name, values in previous._columns.items()}
        for position, old in enumerate(kept.tolist()):
            if old >= 0:
                self._events[position] = previous._events[old]
        self._telemetry = self._as_telemetry()

    def update(self, observed: Observation | None) -> ActivationTelemetry:
        """Take in a sampled step (None: not sampled) and return the columns."""
        if observed is not None:
            values = read_samples(observed.activations)
            scale = np.full(len(self._kinds), np.nan)
            for position, (inputs, outputs) in values.items():
                self._measure(position, inputs, outputs)
                scale[position] = math.sqrt(float(np.mean(np.square(outputs)))) if outputs.size else math.nan
            self._measure_gradients(observed.activations)
            self._scale.update(scale)
            self._columns["stability"] = 1.0 - np.minimum(self._scale.relative_spread(), 1.0)
            self._telemetry = self._as_telemetry()
        return self._telemetry

    def _as_telemetry(self) -> ActivationTelemetry:
        columns = {
            name: (Float32Column if name in _NOT_RATIOS else Float16Column).of(values)
            for name, values in self._columns.items()
        }
        return ActivationTelemetry(**columns)  # type: ignore[arg-type]  # the names decide the column type

    def _measure(self, position: int, inputs: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> None:
        kind, events, columns = self._kinds[position], self._events[position], self._columns
        columns["activation_frequency"][position] = float(np.mean(outputs != 0)) if outputs.size else math.nan
        rate = kind.saturation_rate(inputs, outputs) if outputs.size else math.nan
        columns["saturation_rate"][position] = rate
        if not math.isnan(rate):
            events.append(rate > kind.alarm)
            columns["saturation_events"][position] = sum(events)
        if kind.one_operation:
            columns["nonlinearity_strength"][position] = _nonlinearity(inputs, outputs)

    def _measure_gradients(self, samples: Mapping[int, ActivationSample]) -> None:
        inward = _root_sums({position: sample.gradients_in for position, sample in samples.items()})
        outward = _root_sums({position: sample.gradients_out for position, sample in samples.items()})
        for position, norm in outward.items():
            self._columns["gradient_contribution"][position] = norm
            if position in inward and norm > 0:
                self._columns["gradient_flow"][position] = min(inward[position] / norm, 1.0)


class ParameterColumns:
    """The columns of an optimizer's parameter groups."""

    def __init__(self, layout: TensorLayout) -> None:
        self._groups = layout.groups
        self._steps_since_measured = 0
        self._gradients = Ewma(layout.groups.count)
        self._update_magnitude = np.full(layout.groups.count, np.nan)
        self._convergence_rate = np.full(layout.groups.count, np.nan)

    def inherit(self, previous: ParameterColumns, kept: IndexArray) -> None:
        """Go on from the columns of the version before, as :meth:`LayerColumns.inherit` does."""
        self._steps_since_measured = previous._steps_since_measured
        self._gradients.inherit(previous._gradients, kept)
        self._update_magnitude = _carried(previous._update_magnitude, kept)
        self._convergence_rate = _carried(previous._convergence_rate, kept)

    def update(self, measured: UpdateMeasurement, optimizer: Optimizer) -> ParameterTelemetry:
        """Take in one step and return its columns."""
        self._gradients.update(_norm(self._groups, measured.gradient_norm, measured.has_gradient))
        self._steps_since_measured += 1
        if measured.update_norm is not None and measured.weight_norm is not None:
            self._measure_update(measured.update_norm, measured.weight_norm)
        groups = optimizer.param_groups
        return ParameterTelemetry(
            learning_rate=Float32Column.of([learning_rate_of(group) for group in groups]),
            momentum=Float32Column.of([momentum_of(group) for group in groups]),
            gradient_variance=Float32Column.of(self._gradients.variance),
            convergence_rate=Float32Column.of(self._convergence_rate),
            update_magnitude=Float32Column.of(self._update_magnitude),
        )

    def _measure_update(self, update_norm: FloatArray, weight_norm: FloatArray) -> None:
        everything = np.ones(len(weight_norm), dtype=np.bool_)
        weights = _norm(self._groups, weight_norm, everything)
        magnitude = np.full(len(weights), np.nan)
        np.divide(_norm(self._groups, update_norm, everything), weights, out=magnitude, where=weights > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = magnitude / self._update_magnitude
            self._convergence_rate = 1.0 - ratio ** (1.0 / self._steps_since_measured)
        self._update_magnitude, self._steps_since_measured = magnitude, 0


def read_samples(
    samples: Mapping[int, ActivationSample],
) -> dict[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Return inputs and outputs of each activation as float32, with one copy off the device for all of them."""
    parts = [part for sample in samples.values() for part in (*sample.inputs, *sample.outputs)]
    if not parts:
        return {}
    flat = torch.cat([part.to(torch.float32) for part in parts]).cpu().numpy()
    pieces = iter(np.split(flat, np.cumsum([part.numel() for part in parts])[:-1]))
    return {
        position: (
            np.concatenate([next(pieces) for _ in sample.inputs] or [flat[:0]]),
            np.concatenate([next(pieces) for _ in sample.outputs] or [flat[:0]]),
        )
        for position, sample in samples.items()
    }


def _root_sums(norms: Mapping[int, Sequence[torch.Tensor]]) -> dict[int, float]:
    """Return the norm over all calls of each activation, from the norms of the calls."""
    flat = [norm for calls in norms.values() for norm in calls]
    if not flat:
        return {}
    values = iter(torch.stack([norm.to(torch.float32) for norm in flat]).tolist())
    return {
        position: math.sqrt(sum(next(values) ** 2 for _ in calls)) for position, calls in norms.items() if calls
    }


def _nonlinearity(inputs: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> float:
    """Return 1 - |correlation|; NaN where input and output differ in size or one of them is constant.

    What an attention mask shut out (an input of minus infinity) is left out.
    """
    if inputs.size == outputs.size:
        unmasked = inputs != -np.inf
        inputs, outputs = inputs[unmasked], outputs[unmasked]
    if inputs.size != outputs.size or inputs.size < 2:
        return math.nan
    x, y = inputs - inputs.mean(), outputs - outputs.mean()
    spread = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return max(0.0, 1.0 - abs(float(x @ y)) / spread) if spread > 0 and math.isfinite(spread) else math.nan


def _norm(owners: Membership, norms: FloatArray, present: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the L2 norm over each owner's tensors, from the norms of the tensors."""
    return np.sqrt(owners.sums(np.square(norms), present))
