"""Watching one run: from each step's measurements to one state packet, from each structure to one blueprint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from schemas.catalogue import Stream
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.upstream.publisher import Publisher
from tamiyo_stream.upstream.tolaria.blueprint import build_blueprint, host_blueprint_id
from tamiyo_stream.upstream.tolaria.instruments import Instruments, StepTelemetry, number_of, unwrapped
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.sampling import SamplingInterval
from tamiyo_stream.upstream.tolaria.training_metrics import HostMeter, LossMeter, optimizer_metrics

#: Leaves room for "-step-<n>" in a packet id of 200 characters.
MAX_RUN_ID = 170
#: Sampled steps in a row after a change of structure: a rate needs two, a kernel that begins at zero three.
FIRST_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Run:
    """What a run is called, how often it is sampled (None: by budget), and at which step the watch begins.

    Raises:
        ValueError: an empty or overlong name, or an interval below one step.
    """

    run_id: str
    sample_every: int | None = None
    first_step: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.run_id) <= MAX_RUN_ID:
            raise ValueError(f"run_id has {len(self.run_id)} characters; give it 1 to {MAX_RUN_ID}")
        if self.sample_every is not None and self.sample_every < 1:
            raise ValueError(f"sample_every is {self.sample_every}; give it 1 (every step) or more")
        if self.first_step < 0:
            raise ValueError(f"first_step is {self.first_step}; give it 0 or more")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the training loop itself says about a step."""

    loss: torch.Tensor | float | None
    samples: int | None
    epoch: int | None
    validation_loss: float | None
    validation_accuracy: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Pace:
    """Time since the last step, and what the probe took of it, in seconds; None at the first."""

    step_s: float | None
    probe_s: float | None


class RunWatch:
    """Watches ``model`` under ``optimizer``; publishes its blueprint at once.

    Raises:
        ModelWithoutParameters: nothing in ``model`` can be trained.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, run: Run, publisher: Publisher, guard: Safeguard
    ) -> None:
        self.run = run
        self.steps = 0
        self.blueprint_version = ""
        self.structure_source = ""
        self._model, self._optimizer = model, optimizer
        self._publisher = publisher
        self._guard = guard
        self._instruments: Instruments | None = None
        self._interval = SamplingInterval(run.sample_every)
        self._sampled = False
        self._unsampled = 0
        self._losses = LossMeter()
        self._stepped_at: float | None = None
        self._spent_s: float | None = None
        self._adopt(Instruments(model, optimizer, guard))
        self._host = HostMeter(next(model.parameters()).device)

    def step(self, report: StepReport) -> str:
        """Publish the state of the step that just ended and prepare the next; return the packet's id."""
        started = time.perf_counter()
        hooks_s = self._guard.spent_s
        step = self.run.first_step + self.steps
        self.steps += 1
        packet_id = f"{self.run.run_id}-step-{step}"
        since = self._stepped_at
        pace = _Pace(None if since is None else started - since, self._spent_s)
        self._guard("structure", self._renew)
        telemetry = self._measure(report.loss)
        self._guard("packet", lambda: self._publish(packet_id, step, report, telemetry, pace))
        self._stepped_at = time.perf_counter()
        taken = None if since is None else self._stepped_at - since
        self._guard("sampling", lambda: self._choose_next(taken))
        self._spent_s, self._guard.spent_s = hooks_s + time.perf_counter() - started, 0.0
        return packet_id

    def remove(self) -> None:
        """Take every hook off the model and the optimizer."""
        if self._instruments is not None:
            self._instruments.remove()

    def _adopt(self, instruments: Instruments) -> None:
        """Use ``instruments`` from now on, and publish their blueprint where it is a new one."""
        self._instruments = instruments
        self._sample_next(True)
        self.structure_source = instruments.structure.source
        blueprint = build_blueprint(
            instruments.structure,
            unwrapped(self._model),
            self._optimizer,
            run_id=self.run.run_id,
            issued_at=time.time_ns(),
            compiled=instruments.compiled,
        )
        if blueprint.blueprint_version != self.blueprint_version:
            self._publisher.publish(Stream.BLUEPRINTS, blueprint, keep_as=blueprint.blueprint_id)
            self.blueprint_version = blueprint.blueprint_version

    def _renew(self) -> None:
        """Measure a model whose structure changed (a seed was grafted) under its new blueprint."""
        if self._instruments is not None and self._instruments.outdated:
            previous, self._instruments = self._instruments, None
            previous.remove()
            self._adopt(Instruments(self._model, self._optimizer, self._guard, previous))
            self._unsampled = FIRST_SAMPLES  # this step's passes are over: the next ones fill the new columns

    def _choose_next(self, taken_s: float | None) -> None:
        due = self._interval.next_is_sampled(taken_s, self._sampled)
        self._sample_next(due or self._unsampled > 0)
        self._unsampled = max(0, self._unsampled - 1)

    def _sample_next(self, wanted: bool) -> None:
        self._sampled = wanted
        if self._instruments is not None:
            self._instruments.sample_next(wanted)

    def _measure(self, loss: torch.Tensor | float | None) -> StepTelemetry:
        """Return the step's telemetry; where measuring fails, at least the loss, for the step must not be lost."""
        measured: list[StepTelemetry] = []
        instruments = self._instruments
        if instruments is None or not self._guard("measuring", lambda: measured.append(instruments.measure(loss))):
            self._guard("reading the loss", lambda: measured.append(StepTelemetry(loss=number_of(loss))))
        return measured[0] if measured else StepTelemetry()

    def _publish(
        self, packet_id: str, step: int, report: StepReport, telemetry: StepTelemetry, pace: _Pace
    ) -> None:
        host_metrics, hardware = self._host.read()
        packet = SystemStatePacket(
            run_id=self.run.run_id,
            packet_id=packet_id,
            global_step=step,
            timestamp_ns=time.time_ns(),
            blueprint_id=host_blueprint_id(self.run.run_id),
            blueprint_version=self.blueprint_version,
            current_epoch=report.epoch,
            training_loss=telemetry.loss,
            validation_loss=report.validation_loss,
            validation_accuracy=report.validation_accuracy,
            hardware_context=hardware,
            training_metrics={
                **self._losses.update(telemetry.loss, telemetry.gradient_norm),
                **_pace_metrics(pace, report.samples),
                **optimizer_metrics(self._optimizer),
                **host_metrics,
                **report.metrics,
            },
            layers=telemetry.layers,
            activations=telemetry.activations,
            parameters=telemetry.parameters,
        )
        self._publisher.publish(Stream.STATE, packet)


def _pace_metrics(pace: _Pace, samples: int | None) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if pace.step_s is not None and pace.step_s > 0:
        metrics["step_latency_ms"] = pace.step_s * 1e3
        if samples is not None:
            metrics["samples_per_s"] = samples / pace.step_s
    if pace.probe_s is not None:
        metrics["hook_latency_ms"] = pace.probe_s * 1e3
    return metrics
