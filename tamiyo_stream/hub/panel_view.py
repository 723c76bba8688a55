"""The panel's documents: what the hub knows, as plain values for JSON. None = not known, shown as a dash."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.enums import CircuitBreakerState, HealthStatus, SeedLifecycleStage
from schemas.kasmina import SeedState
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub.hub_state import FeedReading, HubState
from tamiyo_stream.hub.observations import BREAKER, COVERAGE
from tamiyo_stream.hub.panel_state import Bin, RunView, Shown
from tamiyo_stream.hub.picture import Picture
from tamiyo_stream.hub.progress import Verdict

NS_PER_MS = 1_000_000
Document = dict[str, Any]
#: Figures of Tolaria and Kasmina that the panel names, in this order.
UPSTREAM = (
    "tolaria.training.loss",
    "tolaria.training.accuracy",
    "tolaria.training.latency_ms",
    "tolaria.hook.latency_ms",
    "tolaria.lr_controller.current_lr",
    "tolaria.breaker.state",
    "kasmina.seeds.active",
    "kasmina.isolation.violations",
    "kasmina.breaker.state",
)
_FIGURES = ("loss", "latency_ms", "risk", "coverage")


def state_document(state: HubState, now_ns: int) -> Document:
    """Return everything but decisions, history and pictures: small, sent with every tick."""
    now = time.monotonic()
    ages: dict[str, list[Document]] = {}
    for run_id, source, age_ms in state.aggregator.ages(now_ns):
        ages.setdefault(run_id, []).append({"source": source, "age_ms": round(age_ms)})
    return {
        "now_ms": now_ns // NS_PER_MS,
        "worker": state.worker_id,
        "live": _verdict(state.progress.live(now)),
        "ready": _verdict(state.progress.readiness(now)),
        "in_flight": state.progress.in_flight,
        "feeds": [_feed(feed, now_ns) for feed in state.feeds.values()],
        "feeds_age_ms": _age(state.feeds_read_ns, now_ns),
        "model": _model(state),
        "registries": dict(state.registries),
        "dropped": state.aggregator.statistics().dropped,
        "runs": [_run(state, run, ages.get(run.run_id, []), now_ns) for run in state.panel.runs() if run.run_id],
    }


def decision_document(shown: Shown) -> Document:
    """Return one decision with its why."""
    command = shown.command
    notes = command.annotations
    return {
        "id": command.command_id,
        "at_ms": shown.seen_ns // NS_PER_MS,
        "run": command.run_id,
        "step": command.global_step,
        "command": command.command_type.name,
        "action": notes.get("command_action") or action_of(command),
        "seed": command.target_seed_id or None,
        "blueprint": notes.get("selected_blueprint"),
        "changes": _changes(command),
        "reason": notes.get("risk_reason", ""),
        "risk": _number(notes.get("policy_risk_score")),
        "latency_ms": _number(notes.get("decision_latency_ms")),
        "coverage": _number(notes.get("feature_coverage")),
        "method": notes.get("blending_method"),
        "hazard": notes.get("bsds_hazard_band"),
        "version": notes.get("policy_version"),
        "superseded": len(command.superseded_packet_ids),
        "why": why_of(command),
    }


def action_of(command: AdaptationCommand) -> str:
    """Return what ``command`` does, in a word."""
    if command.seed_operation is not None:
        return command.seed_operation.operation.name.lower()
    return command.command_type.name.lower()


def why_of(command: AdaptationCommand) -> Document:
    """Return the command's ``why``; empty where it has none that can be read."""
    try:
        return msgspec.json.decode(command.annotations.get("why", "{}"), type=dict)
    except msgspec.MsgspecError:
        return {}


def picture_document(run_id: str, picture: Picture) -> Document:
    """Return the picture of a run's model."""
    return {
        "run": run_id,
        "blueprint": picture.blueprint_id,
        "version": picture.blueprint_version,
        "layers": len(picture.order),
        "cells": [
            {
                "name": cell.name,
                "type": cell.type,
                "depth": cell.depth,
                "block": cell.block,
                "parameters": cell.parameters,
                "layers": cell.layers,
            }
            for cell in picture.cells
        ],
        "lines": picture.lines,
    }


def history_document(bins: list[Bin]) -> list[list[float | None]]:
    """Return one row per second: second, steps, loss, largest latency, largest risk, coverage."""
    rows = list[list[float | None]]()
    for one in bins:
        values = one.values()
        rows.append([one.second, one.steps, *(_round(values.get(figure)) for figure in _FIGURES)])
    return rows


def _run(state: HubState, run: RunView, sources: list[Document], now_ns: int) -> Document:
    packet, picture = run.packet, run.picture()
    figures = {point.name: point.value for point in packet.metrics} if packet is not None else {}
    command = run.command
    return {
        "id": run.run_id,
        "age_ms": _age(run.seen_ns, now_ns),
        "step": command.global_step if command is not None else None,
        "decisions": run.decisions,
        "health": _health(packet),
        "conservative": _flag(figures.get("tamiyo.conservative_mode")),
        "loss": _round(figures.get("tamiyo.training_loss")),
        "validation_loss": _round(figures.get("tamiyo.validation_loss")),
        "loss_delta": _round(figures.get("tamiyo.loss_delta")),
        "risk": _round(figures.get("tamiyo.policy.risk_score")),
        "risk_index": figures.get("tamiyo.policy.risk_index"),
        "value": _round(figures.get("tamiyo.policy.value_estimate")),
        "bsds_missing": figures.get("tamiyo.gnn.bsds_missing"),
        "bsds_failed": figures.get("tamiyo.gnn.bsds_failed"),
        "coverage": {
            "average": _round(figures.get("tamiyo.gnn.feature_coverage")),
            "mandatory": _round(figures.get("tamiyo.gnn.mandatory_coverage")),
            "types": {
                name.removeprefix(COVERAGE): round(value, 4)
                for name, value in figures.items()
                if name.startswith(COVERAGE)
            },
        },
        "latency": _latency(run, figures),
        "breakers": _breakers(figures),
        "sources": sources,
        "upstream": _upstream(state, run.run_id, now_ns),
        "seeds": [_seed(seed, picture) for seed in run.seeds],
        "picture": picture.blueprint_version if picture is not None else None,
        "attention": _attention(command, picture),
        "heat": picture.largest(run.gradient_norms)
        if picture is not None and run.gradient_norms is not None
        else None,
    }


def _latency(run: RunView, figures: Mapping[str, float]) -> Document:
    ordered = sorted(run.latencies)
    return {
        "last": _round(run.latencies[-1]) if run.latencies else None,
        "p50": _round(ordered[len(ordered) // 2]) if ordered else None,
        "p95": _round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]) if ordered else None,
        "budget": figures.get("tamiyo.decision.budget_ms"),
        "late": run.late,
        "inference": _round(figures.get("tamiyo.inference.latency_ms")),
    }


def _breakers(figures: Mapping[str, float]) -> list[Document]:
    return [
        {
            "name": name.removeprefix(BREAKER).removesuffix("_state"),
            "state": CircuitBreakerState(int(value)).name,
            "failures": figures.get(name.removesuffix("_state") + "_failures"),
        }
        for name, value in figures.items()
        if name.startswith(BREAKER) and name.endswith("_state")
    ]


def _upstream(state: HubState, run_id: str, now_ns: int) -> list[Document]:
    found = [(name, state.aggregator.value(run_id, name.partition(".")[0], name, now_ns)) for name in UPSTREAM]
    return [{"name": name, "value": _round(value)} for name, value in found if value is not None]


def _seed(seed: SeedState, picture: Picture | None) -> Document:
    return {
        "id": seed.seed_id,
        "stage": SeedLifecycleStage(seed.stage).name,
        "alpha": _round(seed.alpha),
        "blueprint": seed.blueprint_id,
        "risk": _round(seed.risk_score),
        "cells": picture.cells_of(seed) if picture is not None else [],
    }


def _attention(command: AdaptationCommand | None, picture: Picture | None) -> dict[str, float]:
    if command is None or picture is None:
        return {}
    layers = why_of(command).get("layers")
    if not isinstance(layers, dict):
        return {}
    return {str(cell): share for cell, share in picture.shares(layers).items()}


def _feed(feed: FeedReading, now_ns: int) -> Document:
    return {
        "name": feed.name,
        "lag": feed.lag,
        "pending": feed.pending,
        "length": feed.length,
        "age_ms": _age(feed.newest_ns, now_ns),
    }


def _model(state: HubState) -> Document | None:
    model = state.model
    if model is None:
        return None
    return {
        "version": model.version,
        "digest": model.digest,
        "device": model.device,
        "precision": model.precision,
        "compiled": model.compiled,
        "compile_reason": model.compile_reason,
        "warm_ms": _round(model.warm_ms),
        "since_ms": model.in_use_since_ns // NS_PER_MS or None,
    }


def _health(packet: TelemetryPacket | None) -> Document:
    health = packet.system_health if packet is not None else None
    if health is None:
        return {"status": HealthStatus.UNKNOWN.name, "summary": ""}
    return {"status": HealthStatus(health.status).name, "summary": health.summary}


def _verdict(verdict: Verdict) -> Document:
    return {"ok": verdict.ok, "reasons": verdict.reasons}


def _changes(command: AdaptationCommand) -> dict[str, float]:
    if command.optimizer_adjustment is not None:
        return command.optimizer_adjustment.hyperparameters
    return {}


def _age(then_ns: int | None, now_ns: int) -> int | None:
    return max(0, now_ns - then_ns) // NS_PER_MS if then_ns else None


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _flag(value: float | None) -> bool | None:
    return None if value is None else bool(value)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else _round(float(text))
    except ValueError:
        return None
