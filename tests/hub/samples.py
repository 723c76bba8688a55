"""Packets, commands and models for the hub's tests."""

from __future__ import annotations

from schemas.enums import CommandType, HealthStatus, TelemetryLevel
from schemas.kasmina import MonitoredLayer, SeedState
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket
from schemas.urza import Adjacency, Blueprint, BlueprintGraph, BlueprintLayers, EdgeList

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


def point(name: str, value: float, unit: str = "", **attributes: str) -> MetricPoint:
    return MetricPoint(name=name, value=value, unit=unit, attributes=attributes)


def event(name: str, level: TelemetryLevel = TelemetryLevel.WARNING, **attributes: str) -> TelemetryEvent:
    return TelemetryEvent(event_id="evt-1", description=name, level=level, attributes=attributes)


def packet(*metrics: MetricPoint, source: str = "tolaria", run_id: str | None = "run", **given) -> TelemetryPacket:
    values = {"packet_id": "p", "timestamp": NOW, "source_subsystem": source, "run_id": run_id}
    return TelemetryPacket(metrics=list(metrics), **{**values, **given})


def health(status: HealthStatus, summary: str = "", **indicators: str) -> SystemHealth:
    return SystemHealth(status=status, summary=summary, indicators=indicators)


def command(number: int = 0, *, run_id: str = "run", **annotations: str) -> AdaptationCommand:
    return AdaptationCommand(
        command_id=f"{run_id}-{number}",
        command_type=CommandType.PAUSE,
        execution_deadline_ms=1000,
        issued_at=NOW,
        run_id=run_id,
        packet_id=f"p{number}",
        global_step=number,
        annotations={"command_action": "hold", "risk_reason": "policy", **annotations},
    )


def blueprint(layers: list[str], *, version: str = "v1", depth: list[int] | None = None, edges=None) -> Blueprint:
    return Blueprint(
        blueprint_id="host",
        blueprint_version=version,
        issued_at=NOW,
        graph=BlueprintGraph(
            layers=BlueprintLayers(
                layer_id=layers,
                type=["linear"] * len(layers),
                depth=depth,
                parameter_count=[10.0] * len(layers),
            ),
            adjacency=None
            if edges is None
            else Adjacency(connects=EdgeList(source=[a for a, _ in edges], target=[b for _, b in edges])),
        ),
    )


def seed(seed_id: str, *layers: str) -> SeedState:
    return SeedState(
        seed_id=seed_id, monitored_layers=[MonitoredLayer(layer_id=layer) for layer in layers] if layers else None
    )
