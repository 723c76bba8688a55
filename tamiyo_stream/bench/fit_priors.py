"""What the fixed priors make of host models: ``python -m tamiyo_stream.bench.fit_priors``.

For every refitted prior of :data:`tamiyo_stream.runs.norms.PRIORS` (requirements ``000`` §3) the values that host
models really have are collected: from their structure and shapes, from their learning-rate schedules, and from a
short training under the Tolaria probe. The table shows them beside the prior, the pair that the requirements give,
and the score of the value that fits worst.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from schemas.catalogue import Stream
from schemas.record import Message
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.bench.hosts import HOSTS, SCHEDULE_STEPS, Host
from tamiyo_stream.runs.norms import PRIORS, Z_LIMIT, Prior
from tamiyo_stream.upstream.tolaria.activation_types import BY_NAME
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tamiyo_stream.upstream.tolaria.tracing import derive_structure

FloatArray = npt.NDArray[np.float64]
Values = dict[str, list[float]]

TRAINING_STEPS = 40


@dataclass(frozen=True, slots=True)
class Fit:
    """Measured values beside a prior. Moments are those of log1p of the values.

    ``worst``, ``worst_given``: the largest score of a value under our pair and under the requirements' (NaN: they
    give none).
    """

    name: str
    prior: Prior
    count: int
    least: float
    greatest: float
    mean: float
    std: float
    worst: float
    worst_given: float

    @property
    def fits(self) -> bool:
        """Whether no value is clipped, and their mean lies within a standard deviation of the prior's."""
        return self.worst <= Z_LIMIT and abs(self.mean - self.prior.mean) <= self.prior.std


def structure_values(hosts: Iterable[Host] = HOSTS) -> Values:
    """Return the values that need no training, by prior: the same on every machine."""
    values: Values = defaultdict(list)
    for host in hosts:
        model = host.model()
        structure = derive_structure(model)
        optimizer = host.optimizer(model)
        for layer in structure.layers:
            values["channels"] += [layer.input_channels, layer.output_channels]
            values["parameter_count"].append(sum(tensor.numel() for tensor in layer.parameters))
            if layer.module is not None:
                layer.module.register_forward_hook(
                    lambda _module, _inputs, output: values["data_flow_volume"].append(output.nbytes)
                )
        values["activation_cost"] += [BY_NAME[activation.type].cost for activation in structure.activations]
        values["parameter_count"] += [
            sum(tensor.numel() for tensor in group["params"]) for group in optimizer.param_groups
        ]
        with torch.no_grad():
            model(host.batch())
        schedule = host.schedule(optimizer)
        for _ in range(SCHEDULE_STEPS):
            values["learning_rate"] += map(float, schedule.get_last_lr())
            optimizer.step()
            schedule.step()
    return dict(values)


def training_values(hosts: Iterable[Host] = HOSTS, steps: int = TRAINING_STEPS) -> Values:
    """Return what the probe measures in the first ``steps`` steps of each host that can be trained here."""
    values: Values = defaultdict(list)
    for host in hosts:
        if host.trainable:
            for packet in _trained(host, steps):
                for columns in (packet.layers, packet.parameters):
                    values["gradient_variance"] += _finite(columns, "gradient_variance")
    return dict(values)


def fits(values: Mapping[str, list[float]]) -> list[Fit]:
    """Return ``values`` beside their priors, in the priors' order. Missing values (NaN) are left out."""
    return [_fit(name, prior, np.array(values[name])) for name, prior in PRIORS.items() if name in values]


def _fit(name: str, prior: Prior, values: FloatArray) -> Fit:
    values = values[np.isfinite(values)]
    logs = np.log1p(values)
    given = math.nan if prior.given is None else _worst(logs, *prior.given)
    return Fit(
        name,
        prior,
        len(values),
        float(values.min()),
        float(values.max()),
        float(logs.mean()),
        float(logs.std()),
        _worst(logs, prior.mean, prior.std),
        given,
    )


def _worst(logs: FloatArray, mean: float, std: float) -> float:
    return float(np.abs((logs - mean) / std).max())


class _Kept:
    """A publisher that keeps the state packets."""

    def __init__(self) -> None:
        self.packets: list[SystemStatePacket] = []

    def publish(self, stream: Stream, message: Message, *, keep_as: str = "") -> bool:  # noqa: ARG002 - Publisher's
        if isinstance(message, SystemStatePacket):
            self.packets.append(message)
        return True


def _trained(host: Host, steps: int) -> list[SystemStatePacket]:
    """Train on random batches and labels from a fixed start: gradients as at the beginning of a run."""
    kept = _Kept()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = host.model()
        optimizer = host.optimizer(model)
        with TolariaProbe.attach(model, optimizer, run_id=host.name, publisher=kept, sample_every=1) as probe:
            for _ in range(steps):
                logits = model(host.batch())
                labels = torch.randint(logits.shape[-1], logits.shape[:-1])
                loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                probe.step(loss)
    return kept.packets


def _finite(columns: object, name: str) -> list[float]:
    column = getattr(columns, name, None)
    values: list[float] = [] if column is None else column[np.isfinite(column)].tolist()
    return values


def _shown(report: Iterable[Fit]) -> Table:
    head = (
        "prior",
        "span",
        "mean",
        "std",
        "given",
        "values",
        "least",
        "greatest",
        "mean",
        "std",
        "worst z",
        "given z",
    )
    table = Table(*head, title="Fixed priors (of log1p) and what host models show")
    for fit in report:
        span = fit.prior.span or (math.nan, math.nan)
        moments = (fit.prior.mean, fit.prior.std)
        given = "" if fit.prior.given is None else "{:g} ± {:g}".format(*fit.prior.given)
        measured = (fit.least, fit.greatest, fit.mean, fit.std, fit.worst, fit.worst_given)
        table.add_row(
            fit.name,
            "{:g} … {:g}".format(*span),
            *(f"{value:.3g}" for value in moments),
            given,
            str(fit.count),
            *(f"{value:.3g}" for value in measured),
        )
    return table


def main() -> None:
    """Measure and show the table."""
    Console(width=160).print(_shown(fits(structure_values() | training_values())))


if __name__ == "__main__":
    main()
