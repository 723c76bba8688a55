"""The seed host: grafts kernels into a model in training, and tells Tamiyo how its seeds are.

Dormant seeds leave the training as it was, bit by bit: their sites have no hook, and nothing is read off the
device but the activity of the monitored layers, every ``activity_every`` steps. A kernel is held beside the model,
not in it: ``model.parameters()`` and ``model.state_dict()`` do not list it (clipping the model's gradients leaves
the kernel's alone), and a model that is copied or saved takes no kernel along.

The training loop is never raised into by :meth:`SeedHost.step` or by a hook. Attaching and operating on seeds
raise, for whoever asks for something impossible must know.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from schemas.catalogue import Stream
from schemas.command_verifier import CommandVerifier
from schemas.enums import TelemetryLevel
from schemas.kasmina import SeedExport
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.upstream.kasmina.activity import ActivityMeter
from tamiyo_stream.upstream.kasmina.commands import Applied, Refusal, Refused, apply_command
from tamiyo_stream.upstream.kasmina.export import outline_of, seed_states
from tamiyo_stream.upstream.kasmina.lifecycle import Limits, Stage
from tamiyo_stream.upstream.kasmina.measuring import KernelMeter
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig
from tamiyo_stream.upstream.kasmina.parameter_groups import ParameterGroups
from tamiyo_stream.upstream.kasmina.seed import EVENT_CAPACITY, SeedEvent
from tamiyo_stream.upstream.kasmina.seedbed import KernelBuilder, Seedbed
from tamiyo_stream.upstream.kasmina.site import PlacedSite, SeedSite, place_sites
from tamiyo_stream.upstream.kasmina.telemetry import alarming, global_packet, seed_packet
from tamiyo_stream.upstream.publisher import Publisher, StreamPublisher
from tamiyo_stream.upstream.tolaria.instruments import unwrapped
from tamiyo_stream.upstream.tolaria.probe import DEFAULT_REDIS_URL
from tamiyo_stream.upstream.tolaria.run_watch import MAX_RUN_ID
from tamiyo_stream.upstream.tolaria.safeguard import Safeguard
from tamiyo_stream.upstream.tolaria.tracing import derive_structure

#: Refusals that are reported otherwise than as ``command_rejected`` (``domain.md`` §2.6).
_REPORTED: Mapping[StrEnum, tuple[str, TelemetryLevel]] = {
    Refusal.NOT_FOR_SEEDS: ("optimizer_adjust", TelemetryLevel.INFO),
    Refusal.UNSUPPORTED: ("unsupported_command", TelemetryLevel.WARNING),
}


@dataclass(frozen=True, slots=True)
class Cadence:
    """Most steps between two exports, two telemetry packets of a seed, two looks at the monitored layers.

    Raises:
        ValueError: an interval below one step.
    """

    export_every: int
    telemetry_every: int
    activity_every: int

    def __post_init__(self) -> None:
        for name in ("export_every", "telemetry_every", "activity_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give it 1 (every step) or more")


class SeedHost:
    """The seeds of one training run. Made by :meth:`attach`."""

    def __init__(
        self,
        bed: Seedbed,
        activity: ActivityMeter,
        guard: Safeguard,
        publisher: Publisher,
        *,
        run_id: str,
        cadence: Cadence,
        verifier: CommandVerifier | None = None,
    ) -> None:
        self._verifier = verifier
        self._bed = bed
        self._activity = activity
        self._publisher = publisher
        self._run_id = run_id
        self._cadence = cadence
        self._guard = guard
        self._meter = KernelMeter(bed.groups.optimizer, bed.seeds, self._guard)
        self._own_publisher: StreamPublisher | None = None
        self._events: deque[SeedEvent] = deque(maxlen=EVENT_CAPACITY)
        self._steps = 0
        self._exported: tuple[object, ...] = ()
        self._exported_at = self._reported_at = 0
        self._timestamp_ns = 0
        self._apply_s = self._finalize_s = 0.0
        self._violations_told = 0
        self._closed = False
        self._activity.arm()

    @classmethod
    def attach(  # noqa: PLR0913 - all but five have defaults that serve
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        sites: Sequence[SeedSite],
        kernels: Mapping[str, KernelBuilder],
        *,
        run_id: str,
        publisher: Publisher | None = None,
        redis_url: str = DEFAULT_REDIS_URL,
        keyring: Keyring | None = None,
        verifier: CommandVerifier | None = None,
        schedulers: Sequence[Any] = (),
        limits: Limits | None = None,
        export_every: int = 10,
        telemetry_every: int = 10,
        activity_every: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Place a dormant seed at each of ``sites`` of ``model``. Never waits for Redis.

        Args:
            model: the module that is trained; wrappers are seen through. Not compiled: hooks come and go.
            optimizer: kernels join it as parameter groups.
            sites: where seeds may act, and how.
            kernels: builders by blueprint id; each takes the site's width and returns a module that maps
                [..., width] to [..., width].
            run_id: names the run, as the probe's.
            publisher: is used instead of a new one to ``redis_url``, and not closed by :meth:`close`.
            redis_url: the Oona bus.
            keyring: signs what is published.
            verifier: accepts each fresh, authentic command once; None: whoever hands commands over checks them.
            schedulers: the learning-rate schedulers of ``optimizer``; they must learn of new groups.
            limits: durations of stages and bounds of gates.
            export_every: most steps between two exports; what changes is exported at once.
            telemetry_every: most steps between two telemetry packets of a seed; warnings leave at once.
            activity_every: steps between two looks at the monitored layers.
            clock: seconds, for the embargo.

        Raises:
            SiteInvalid: a site that does not fit the model.
            ModelWithoutParameters: nothing in ``model`` can be trained.
            RedisUrlInvalid: ``redis_url`` cannot be read.
            ValueError: a run id that is empty or too long, or an interval below one step.
        """
        cadence = Cadence(export_every, telemetry_every, activity_every)
        if not 1 <= len(run_id) <= MAX_RUN_ID:
            raise ValueError(f"run_id has {len(run_id)} characters; give it 1 to {MAX_RUN_ID}")
        inner = unwrapped(model)
        placed = place_sites(sites, inner, derive_structure(inner), optimizer)
        own = None
        if publisher is None:
            publisher = own = StreamPublisher(redis_url, keyring)
        bed = Seedbed(placed, kernels, ParameterGroups(optimizer, schedulers), limits or Limits(), clock)
        guard = Safeguard()
        host = cls(
            bed,
            ActivityMeter(_monitored(placed), guard),
            guard,
            publisher,
            run_id=run_id,
            cadence=cadence,
            verifier=verifier,
        )
        host._own_publisher = own
        return host

    @property
    def errors(self) -> Mapping[str, int]:
        """What of the host itself failed and was left out, by kind; each was logged once."""
        return dict(self._guard.errors)

    def stage(self, seed_id: str) -> Stage:
        """Return the stage of ``seed_id``.

        Raises:
            SeedUnknown: no such seed.
        """
        return self._bed.seed(seed_id).stage

    def stages(self) -> dict[str, Stage]:
        """Return the stage of every seed by its id."""
        return {seed.seed_id: seed.stage for seed in self._bed.seeds}

    def apply(self, command: AdaptationCommand, *, now_ns: int | None = None) -> Applied | Refused:
        """Carry out a command that the inbox handed over, or refuse it and change nothing: :func:`apply_command`.

        Call it between steps, with every command; a refusal is reported in telemetry.
        """
        started = time.perf_counter()
        result = self._refuse_unverified(command, now_ns) or apply_command(self._bed, command, now_ns=now_ns)
        self._apply_s += time.perf_counter() - started
        if isinstance(result, Refused):
            code, level = _REPORTED.get(result.reason, ("command_rejected", TelemetryLevel.ERROR))
            attributes = {"command_id": result.command_id, "reason": result.reason, "detail": result.detail}
            self._events.append(SeedEvent(code, level, attributes))
        return result

    def _refuse_unverified(self, command: AdaptationCommand, now_ns: int | None) -> Refused | None:
        if self._verifier is None:
            return None
        now = time.time_ns() if now_ns is None else now_ns
        refusal = self._verifier.check(command, now_ns=now, monotonic_s=time.monotonic())
        return None if refusal is None else Refused(command.command_id, refusal, "not accepted (domain.md §3.5)")

    def germinate(
        self,
        seed_id: str,
        blueprint_id: str,
        parameters: Mapping[str, float] | None = None,
        *,
        blend: BlendConfig | None = None,
        policy_version: str = "",
    ) -> None:
        """Graft the kernel ``blueprint_id`` at a dormant seed: :meth:`Seedbed.germinate`."""
        self._bed.germinate(seed_id, blueprint_id, parameters, blend=blend, policy_version=policy_version)

    def cull(self, seed_id: str, reason: str = "commanded") -> None:
        """Take a seed's kernel away: :meth:`Seedbed.cull`."""
        self._bed.cull(seed_id, reason)

    def terminate(self, seed_id: str, reason: str = "commanded") -> None:
        """End a dormant or fossilised seed for good: :meth:`Seedbed.terminate`."""
        self._bed.terminate(seed_id, reason)

    def pause(self, seed_id: str) -> None:
        """Let a site act as without its kernel: :meth:`Seedbed.pause`."""
        self._bed.pause(seed_id)

    def resume(self, seed_id: str) -> None:
        """Let a paused kernel act again: :meth:`Seedbed.resume`."""
        self._bed.resume(seed_id)

    def step(self, global_step: int, loss: torch.Tensor | float | None = None, epoch: int | None = None) -> None:
        """Take in the training step that just ended: measure, advance the seeds, publish. Never raises.

        Call it once per optimizer step, after ``optimizer.step()``.

        Args:
            global_step: as the state packet of the step has it.
            loss: of the step's batch. Gates compare it with the time before a graft: without losses no seed
                germinates.
            epoch: index.
        """
        if self._closed:
            return
        started = time.perf_counter()
        self._steps += 1
        self._bed.epoch = epoch if epoch is not None else self._bed.epoch
        self._guard("kernel measurements", lambda: self._meter.read(loss))
        self._guard("kernel gradients", self._meter.clear_gradients)
        self._guard("loss", lambda: self._bed.losses.add(loss))
        self._guard("layer activity", self._measure_activity)
        self._guard("seed lifecycle", self._bed.advance)
        self._guard("seed export", lambda: self._export(global_step))
        self._guard("seed telemetry", lambda: self._report(global_step))
        self._finalize_s += time.perf_counter() - started

    def training_metrics(self) -> dict[str, float]:
        """Return what a step's ``training_metrics`` say of the seeds since the last call (``domain.md`` §2.4).

        ``kasmina.apply_ms``: carrying out commands. ``kasmina.finalize_ms``: :meth:`step`.
        ``kasmina.isolation.violations``: kernels that did what none may do (raised, or gave what is not finite).
        """
        told, self._violations_told = self._violations_told, self._bed.violations
        found = {
            "kasmina.apply_ms": self._apply_s * 1000,
            "kasmina.finalize_ms": self._finalize_s * 1000,
            "kasmina.isolation.violations": float(self._bed.violations - told),
        }
        self._apply_s = self._finalize_s = 0.0
        return found

    def close(self, timeout_s: float = 5.0) -> None:
        """Take every hook and kernel off, fossilised ones too; send what is queued, for up to ``timeout_s``."""
        self._closed = True
        self._activity.disarm()
        self._meter.remove()
        self._bed.close()
        if self._own_publisher is not None:
            self._own_publisher.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _measure_activity(self) -> None:
        if self._activity.collect():
            self._activity.disarm()
        if self._steps % self._cadence.activity_every == 0:
            self._activity.arm()

    def _export(self, global_step: int) -> None:
        outline = tuple(map(outline_of, self._bed.seeds))
        if outline == self._exported and self._steps - self._exported_at < self._cadence.export_every:
            return
        export = SeedExport(
            run_id=self._run_id,
            timestamp_ns=self._now_ns(),
            seeds=seed_states(self._bed, self._activity, self._cadence.activity_every),
            global_step=global_step,
        )
        self._publisher.publish(Stream.SEEDS, export, keep_as=f"{self._run_id}-seeds")
        self._exported, self._exported_at = outline, self._steps

    def _report(self, global_step: int) -> None:
        due = self._steps - self._reported_at >= self._cadence.telemetry_every or self._steps == 1
        now_ns = self._now_ns()
        for seed in self._bed.seeds:
            if due or alarming(seed.events):
                packet = seed_packet(seed, self._run_id, global_step, now_ns)
                self._publisher.publish(Stream.TELEMETRY, packet)
        if due or alarming(self._events):
            packet = global_packet(self._bed.seeds, list(self._events), self._run_id, global_step, now_ns)
            self._publisher.publish(Stream.TELEMETRY, packet)
            self._events.clear()
        if due:
            self._reported_at = self._steps

    def _now_ns(self) -> int:
        # An export older than the last is stale to the worker: a clock that is set back must not mute the host.
        self._timestamp_ns = max(time.time_ns(), self._timestamp_ns)
        return self._timestamp_ns


def _monitored(placed: Sequence[PlacedSite]) -> dict[str, nn.Module]:
    """Return the modules to look at, by layer id: the monitored layers, else the site itself."""
    modules: dict[str, nn.Module] = {}
    for place in placed:
        own = {layer.layer_id: layer.module for layer in place.monitored if layer.module is not None}
        modules |= own or {place.site.layer_id: place.module}
    return modules
