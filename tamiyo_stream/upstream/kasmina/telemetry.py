"""Kasmina's telemetry (``domain.md`` §2.14): one packet per seed, one for all; only what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from schemas.enums import HealthStatus, MessagePriority, TelemetryLevel
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket
from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.seed import Seed, SeedEvent

SOURCE = "kasmina"
#: Priority and health of a packet by its gravest event.
_GRAVITY: dict[TelemetryLevel, tuple[MessagePriority, HealthStatus]] = {
    TelemetryLevel.UNSPECIFIED: (MessagePriority.NORMAL, HealthStatus.HEALTHY),
    TelemetryLevel.INFO: (MessagePriority.NORMAL, HealthStatus.HEALTHY),
    TelemetryLevel.WARNING: (MessagePriority.HIGH, HealthStatus.DEGRADED),
    TelemetryLevel.ERROR: (MessagePriority.HIGH, HealthStatus.UNHEALTHY),
    TelemetryLevel.CRITICAL: (MessagePriority.CRITICAL, HealthStatus.CRITICAL),
}
_FREE = frozenset({Stage.DORMANT, Stage.TERMINATED})


def seed_packet(seed: Seed, run_id: str, step: int, timestamp_ns: int) -> TelemetryPacket:
    """Return the packet of ``seed`` as of ``step``; its waiting events leave with it."""
    events = seed.take_events()
    metrics = [
        MetricPoint(name=f"kasmina.seed.{name}", value=value, unit=unit, attributes={"seed_id": seed.seed_id})
        for name, value, unit in _metrics(seed)
        if value is not None and math.isfinite(value)
    ]
    seed.fallback_used = False
    indicators = {"seed_id": seed.seed_id, "stage": seed.stage.name, "step_index": str(step)}
    return _packet(f"kasmina-seed-{seed.seed_id}-{step}", run_id, timestamp_ns, metrics, events, indicators)


def global_packet(
    seeds: Sequence[Seed], events: list[SeedEvent], run_id: str, step: int, timestamp_ns: int
) -> TelemetryPacket:
    """Return the packet about all seeds together. Active are those between germination and the end."""
    active = sum(seed.stage not in _FREE for seed in seeds)
    metrics = [MetricPoint(name="kasmina.seeds.active", value=float(active), unit="count")]
    indicators = {"seeds": str(len(seeds)), "step_index": str(step)}
    return _packet(f"kasmina-global-{run_id}-{step}", run_id, timestamp_ns, metrics, events, indicators)


def alarming(events: Iterable[SeedEvent]) -> bool:
    """Return whether one of ``events`` must not wait for the next packet's turn."""
    return any(event.level >= TelemetryLevel.WARNING for event in events)


def _metrics(seed: Seed) -> Iterable[tuple[str, float | None, str]]:
    graft = seed.graft
    yield "stage", float(seed.stage), "state"
    yield "alpha", seed.alpha, "ratio"
    yield "kernel_attached", float(graft is not None), "flag"
    yield "fallback_used", float(seed.fallback_used), "flag"
    if graft is not None:
        yield "kernel_latency_ms", graft.latency_mean_ms, "ms"
        yield "last_kernel_latency_ms", graft.latency_ms, "ms"
        yield "isolation.seed_norm", graft.gradient_norm, "grad"
        if seed.stage is Stage.BLENDING:
            yield "alpha_steps", float(graft.blended_steps), "count"


def _packet(
    packet_id: str,
    run_id: str,
    timestamp_ns: int,
    metrics: list[MetricPoint],
    events: list[SeedEvent],
    indicators: dict[str, str],
) -> TelemetryPacket:
    level = max((event.level for event in events), default=TelemetryLevel.INFO)
    priority, status = _GRAVITY[level]
    gravest = next((event for event in events if event.level is level and level > TelemetryLevel.INFO), None)
    return TelemetryPacket(
        packet_id=packet_id,
        timestamp=timestamp_ns,
        source_subsystem=SOURCE,
        level=level,
        run_id=run_id,
        metrics=metrics,
        events=[
            TelemetryEvent(
                event_id=f"evt-{number}",
                description=event.code,
                level=event.level,
                attributes=dict(event.attributes),
            )
            for number, event in enumerate(events, 1)
        ],
        system_health=SystemHealth(
            status=status,
            summary=gravest.attributes.get("reason", gravest.code) if gravest is not None else "",
            indicators={**indicators, "priority": f"MESSAGE_PRIORITY_{priority.name}"},
        ),
    )
