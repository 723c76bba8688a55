"""What the hub is told of a worker's steps: after the commit, so that no figure delays a decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from consumers.delivery import Delivery
from schemas.kasmina import SeedExport
from schemas.tamiyo import AdaptationCommand
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.instruments import DEAD_LETTERS
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.tracing import StepTrace, StepTracer
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.worker.steps import Mail, Outcome


@dataclass(frozen=True, slots=True)
class StepObserver:
    """Hands a worker's doings to the hub: progress, instruments, spans, panel."""

    state: HubState
    meters: Meters
    tracer: StepTracer
    tables: Tables
    group: str
    stage_limit_s: float

    def beat_of(self, stage: str, rest_s: float = 0.0) -> Callable[[], None]:
        """Return what the loop ``stage`` calls in every round: one that falls silent fails ``/livez``.

        ``rest_s``: how long it rests between two rounds, which nobody may take for silence.
        """
        watched = self.state.progress.stage(stage, self.stage_limit_s + rest_s, time.monotonic())
        return lambda: watched.tick(time.monotonic())

    def heard(self, error: Exception | None) -> None:
        """Take note that Redis does not answer (``error``), or answers again (None)."""
        if error is None:
            self.state.progress.bus_back(time.monotonic())
        else:
            self.state.progress.bus_away(str(error))

    def claimed(self, deliveries: Sequence[Delivery]) -> None:
        """Note entries that were handed out to this worker."""
        now = time.monotonic()
        for delivery in deliveries:
            self.state.progress.claimed(f"{delivery.key} {delivery.entry_id}", now)
            self.meters.consumed(delivery.stream.value, 1, self.group)

    def settled(self, deliveries: Sequence[Delivery]) -> None:
        """Note entries that are committed, refused or handed back."""
        for delivery in deliveries:
            self.state.progress.settled(f"{delivery.key} {delivery.entry_id}")

    def refused(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """Count entries that went to the dead letter."""
        for delivery in deliveries:
            self.meters.add(DEAD_LETTERS, 1, {"stream": delivery.stream.value, "reason": reason})

    def begin(self, mail: Sequence[Mail]) -> StepTrace:
        """Open the trace of a run's mail."""
        return self.tracer.begin(
            mail[-1].delivery.stream.value,
            [
                {"traceparent": item.entry.traceparent or "", "tracestate": item.entry.tracestate or ""}
                for item in mail
            ],
        )

    def committed(
        self,
        run: RunState,
        mail: Sequence[Mail],
        outcome: Outcome,
        trace: StepTrace,
        stages_ms: Mapping[str, float],
    ) -> None:
        """Record what a run's mail led to."""
        now_ns, now = time.time_ns(), time.monotonic()
        for item in mail:
            self.meters.processed(item.delivery.stream.value, now - item.delivery.claimed_at)
            message = item.entry.message
            if isinstance(message, SeedExport):
                self.state.panel.seeds(run.run_id, message.seeds, now_ns)
            elif isinstance(message, SystemStatePacket) and message.layers is not None:
                self.state.panel.layers(run.run_id, message.layers.gradient_norm, now_ns)
        host = self.tables.hosts.get(run.blueprint_id or "")
        if host is not None:
            self.state.panel.model(run.run_id, host, now_ns)
        if outcome.decision is not None and outcome.telemetry is not None:
            self._note_policy(outcome.decision.command, now_ns)
            self.state.step(outcome.decision.command, outcome.telemetry, now_ns)
            self.meters.decided(outcome.decision.issued.action.value, outcome.telemetry, stages_ms)
        elif outcome.telemetry is not None:
            self.meters.reported(outcome.telemetry)
        trace.finish({"tamiyo.run_id": run.run_id})

    def _note_policy(self, command: AdaptationCommand, now_ns: int) -> None:
        """Show the policy that decided: it is replaced while the worker runs."""
        model, notes = self.state.model, command.annotations
        if model is not None and notes.get("policy_digest", model.digest) != model.digest:
            self.state.model = replace(
                model,
                version=notes.get("policy_version", ""),
                digest=notes["policy_digest"],
                in_use_since_ns=now_ns,
            )
