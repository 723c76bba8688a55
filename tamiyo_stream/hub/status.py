"""The platform at a glance in the terminal, from the telemetry on the bus alone (``tamiyo-stream status``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas.enums import CircuitBreakerState, HealthStatus
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub.aggregate import OWN_SOURCE
from tamiyo_stream.hub.observations import BREAKER, COVERAGE

NS_PER_S = 1e9
#: A run of which nothing was heard for longer is shown as silent, in s.
SILENT_S = 30.0
#: Types shown of which least arrived.
SHOWN_TYPES = 3
_COLOURS = {
    HealthStatus.HEALTHY: "green",
    HealthStatus.DEGRADED: "yellow",
    HealthStatus.UNHEALTHY: "red",
    HealthStatus.CRITICAL: "bold red",
}
_COLUMNS = ("run", "health", "step", "loss", "decided in", "risk", "inputs", "least of", "mode", "heard")


@dataclass(slots=True)
class _Run:
    newest: TelemetryPacket
    figures: dict[str, float] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)


def render_status(packets: Iterable[TelemetryPacket], now_ns: int) -> RenderableType:
    """Return the newest state of every run that Tamiyo's ``packets`` (oldest first) tell of."""
    runs: dict[str, _Run] = {}
    for packet in packets:
        if packet.source_subsystem == OWN_SOURCE and packet.run_id:
            _take(runs, packet)
    if not runs:
        return Text("no telemetry of Tamiyo on the bus: is a worker running, and has a run published a step?")
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in _COLUMNS:
        figure = title in {"step", "loss", "decided in", "risk"}
        # A run's name is what one looks for: it is never cut.
        table.add_column(
            title, justify="right" if figure else "left", overflow="fold" if title == "run" else "ellipsis"
        )
    for run_id, run in sorted(runs.items()):
        table.add_row(*_row(run_id, run, now_ns))
    return Group(table, *_sources(runs))


def _take(runs: dict[str, _Run], packet: TelemetryPacket) -> None:
    known = runs.setdefault(packet.run_id or "", _Run(packet))
    known.newest = packet
    for point in packet.metrics:
        if not point.attributes:
            known.figures[point.name] = point.value
        elif point.name == "tamiyo.hub.age_ms":
            known.ages[point.attributes.get("source", "")] = point.value


def _row(run_id: str, run: _Run, now_ns: int) -> tuple[RenderableType, ...]:
    figures = run.figures
    return (
        Text(run_id, style="bold"),
        _health(run.newest),
        _indicator(run.newest, "step_index"),
        _number(figures, "tamiyo.training_loss", ".3f"),
        _latency(figures),
        _number(figures, "tamiyo.policy.risk_score", ".2f"),
        _number(figures, "tamiyo.gnn.feature_coverage", ".0%"),
        _least(figures),
        _mode(figures),
        _heard(run.newest, now_ns),
    )


def _health(packet: TelemetryPacket) -> Text:
    health = packet.system_health
    if health is None:
        return Text("unknown", style="dim")
    status = HealthStatus(health.status)
    return Text(f"{status.name.lower()}: {health.summary}", style=_COLOURS.get(status, "dim"))


def _indicator(packet: TelemetryPacket, name: str) -> str:
    return packet.system_health.indicators.get(name, "–") if packet.system_health else "–"


def _number(figures: Mapping[str, float], name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else "–"


def _latency(figures: Mapping[str, float]) -> Text:
    took, budget = figures.get("tamiyo.decision.latency_ms"), figures.get("tamiyo.decision.budget_ms")
    if took is None:
        return Text("–")
    text = f"{took:.1f} ms" if budget is None else f"{took:.1f} of {budget:.0f} ms"
    return Text(text, style="red" if budget is not None and took > budget else "")


def _least(figures: Mapping[str, float]) -> str:
    types = sorted((value, name) for name, value in figures.items() if name.startswith(COVERAGE))
    return ", ".join(
        f"{name.removeprefix(COVERAGE)} {value:.0%}" for value, name in types[:SHOWN_TYPES] if value < 1
    )


def _mode(figures: Mapping[str, float]) -> Text:
    conservative = figures.get("tamiyo.conservative_mode")
    words = [] if conservative is None else ["conservative" if conservative else "normal"]
    for name, value in figures.items():
        if name.startswith(BREAKER) and name.endswith("_state") and value != CircuitBreakerState.CLOSED:
            component = name.removeprefix(BREAKER).removesuffix("_state")
            words.append(f"{component} {CircuitBreakerState(int(value)).name.lower()}")
    return Text(", ".join(words) or "–", style="yellow" if words and words != ["normal"] else "")


def _heard(packet: TelemetryPacket, now_ns: int) -> Text:
    seconds = max(0.0, (now_ns - packet.timestamp) / NS_PER_S)
    silent = seconds > SILENT_S
    return Text(f"{'silent for ' if silent else ''}{seconds:.0f} s", style="red" if silent else "dim")


def _sources(runs: Mapping[str, _Run]) -> list[Text]:
    return [
        Text(
            f"{run_id}: "
            + ", ".join(f"{source} {age / 1000:.0f} s ago" for source, age in sorted(run.ages.items())),
            style="dim",
        )
        for run_id, run in sorted(runs.items())
        if run.ages
    ]
