"""The Tolaria probe: three lines that connect a PyTorch training loop to Tamiyo.

It publishes the model's blueprint once per structure and one state packet per step. The training loop is never
raised into: what fails is counted and logged once, what cannot be measured is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer

from schemas.signing import Keyring
from tamiyo_stream.upstream.publisher import Publisher, PublisherStatistics, StreamPublisher
from tamiyo_stream.upstream.tolaria.run_watch import Run, RunWatch, StepReport
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard

log = logging.getLogger("tamiyo.probe")

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


@dataclass(frozen=True, slots=True)
class ProbeStatistics:
    """State of a probe. ``reason`` says why it is off; ``errors`` counts what failed, by kind.

    ``structure_source``: ``fx`` or ``module_tree``; ``publisher`` is None where the probe was given one.
    """

    enabled: bool
    reason: str
    steps: int
    blueprint_version: str
    structure_source: str
    errors: Mapping[str, int]
    publisher: PublisherStatistics | None


class TolariaProbe:
    """Connects one training run. Made by :meth:`attach`; on a probe that is off every method does nothing."""

    def __init__(self) -> None:
        self._enabled = False
        self._reason = ""
        self._guard = Safeguard()
        self._watch: RunWatch | None = None
        self._own_publisher: StreamPublisher | None = None

    @classmethod
    def attach(  # noqa: PLR0913 - all but three have defaults that serve
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        run_id: str,
        redis_url: str = DEFAULT_REDIS_URL,
        keyring: Keyring | None = None,
        publisher: Publisher | None = None,
        sample_every: int | None = None,
        first_step: int = 0,
    ) -> Self:
        """Attach to ``model`` and ``optimizer``, and publish the blueprint. Never raises, never waits for Redis.

        Where it cannot work (no trainable parameters, an unreadable URL, a bad run id) the probe is off: one log
        line says why, ``statistics().reason`` repeats it, and all methods do nothing.

        Args:
            model: the module that is trained; wrappers (DataParallel, DDP, torch.compile) are seen through.
            optimizer: its parameter groups become the blueprint's parameters.
            run_id: names the run, at most 170 characters; a resumed run keeps it.
            redis_url: the Oona bus.
            keyring: signs what is published.
            publisher: is used instead of a new one to ``redis_url``, and not closed by :meth:`close`. Needed where
                the worker's stream names or partitions are not the default.
            sample_every: steps from one sampled step (hooks, weight copies, activation statistics) to the next;
                None keeps them below a fiftieth of the training time and at least ten steps apart.
            first_step: ``global_step`` of the first packet; a resumed run goes on above its last step.
        """
        probe = cls()
        try:
            run = Run(run_id, sample_every, first_step)
            if publisher is None:
                publisher = probe._own_publisher = StreamPublisher(redis_url, keyring)
            probe._watch = RunWatch(model, optimizer, run, publisher, probe._guard)
            probe._enabled = True
        except Exception as error:  # noqa: BLE001 - the probe's boundary: training must not stop for it
            log.warning("the probe of run %r is off, training goes on without Tamiyo: %s", run_id, error)
            probe.close(0.0)
            probe._reason = str(error) or type(error).__name__
        return probe

    def step(
        self,
        loss: torch.Tensor | float | None = None,
        *,
        samples: int | None = None,
        epoch: int | None = None,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str | None:
        """Publish the state of the step that just ended; return its packet id, None where the probe is off.

        Call it once per optimizer step, after ``optimizer.step()`` (under gradient accumulation: with loss and
        samples of all micro-batches; a step that the loop skips for a bad loss counts too). Never raises.

        Args:
            loss: of the step's batch; a tensor is read together with everything else, in one synchronisation.
            samples: in the batch, for the throughput.
            epoch: index.
            validation_loss: newest.
            validation_accuracy: newest, 0..1.
            metrics: further ``training_metrics`` by name.
        """
        watch, ids = self._watch, list[str]()
        if watch is not None and self._enabled:
            report = StepReport(loss, samples, epoch, validation_loss, validation_accuracy, metrics or {})
            self._guard("step", lambda: ids.append(watch.step(report)))
        return ids[0] if ids else None

    def close(self, timeout_s: float = 5.0) -> None:
        """Take all hooks off and send what is queued, for up to ``timeout_s``. The probe is off afterwards."""
        watch, publisher = self._watch, self._own_publisher
        self._enabled, self._reason = False, self._reason or "closed"
        if watch is not None:
            self._guard("closing", watch.remove)
        if publisher is not None:
            self._guard("closing", lambda: publisher.close(timeout_s))

    def statistics(self) -> ProbeStatistics:
        """Return the state of the probe."""
        watch = self._watch
        return ProbeStatistics(
            enabled=self._enabled,
            reason=self._reason,
            steps=watch.steps if watch is not None else 0,
            blueprint_version=watch.blueprint_version if watch is not None else "",
            structure_source=watch.structure_source if watch is not None else "",
            errors=dict(self._guard.errors),
            publisher=self._own_publisher.statistics() if self._own_publisher is not None else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
