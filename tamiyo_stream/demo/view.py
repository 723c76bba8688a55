"""What the demo shows: a live screen, or plain lines for logs and scripts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tamiyo_stream.demo.training import Arrival, Progress

SHOWN_DECISIONS = 12
SHOWN_LOSSES = 60
LINES_EVERY = 50
_BARS = "▁▂▃▄▅▆▇█"
#: Stage -> how much of a seed's life is behind it.
_LIFE = {
    "DORMANT": "○",
    "GERMINATED": "◔",
    "TRAINING": "◔",
    "BLENDING": "◑",
    "SHADOWING": "◕",
    "PROBATIONARY": "◕",
    "FOSSILIZED": "●",
    "CULLED": "✕",
    "EMBARGOED": "✕",
}
_STAGE_STYLES = {"FOSSILIZED": "green", "CULLED": "red", "EMBARGOED": "red", "DORMANT": "dim"}


class View(Protocol):
    """Somewhere to show the run."""

    def show(self, progress: Progress) -> None:
        """Show the run after a step."""
        ...

    def close(self) -> None:
        """Leave the screen as it is."""
        ...


class PlainView:
    """One line every :data:`LINES_EVERY` steps."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._last: Arrival | None = None

    def show(self, progress: Progress) -> None:
        """Print a line where it is time for one."""
        self._last = progress.arrivals[-1] if progress.arrivals else self._last
        if progress.loss is not None and (progress.step % LINES_EVERY == 0 or progress.step == 1):
            decision = describe(self._last) if self._last is not None else "no decision yet"
            self._console.print(
                f"step {progress.step}/{self._steps}  loss {progress.loss:.3f}  {progress.step_ms:.0f} ms/step  "
                f"{decision}",
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """Nothing to leave."""


class LiveView:
    """A screen that follows the run: progress, loss, decisions with their reason, latency, coverage."""

    def __init__(self, console: Console, steps: int) -> None:
        self._steps = steps
        self._losses: deque[float] = deque(maxlen=SHOWN_LOSSES)
        self._arrivals: deque[Arrival] = deque(maxlen=SHOWN_DECISIONS)
        self._delays_ms: deque[float] = deque(maxlen=500)
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._live.start()

    def show(self, progress: Progress) -> None:
        """Redraw the screen."""
        if progress.loss is not None:
            self._losses.append(progress.loss)
        self._arrivals.extend(progress.arrivals)
        self._delays_ms.extend(
            float(arrival.command.annotations["decision_latency_ms"])
            for arrival in progress.arrivals
            if "decision_latency_ms" in arrival.command.annotations
        )
        self._live.update(self._screen(progress))

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()

    def _screen(self, progress: Progress) -> RenderableType:
        loss = f"{self._losses[-1]:.3f}" if self._losses else "–"
        figures = Table.grid(padding=(0, 3))
        figures.add_row(
            f"step [bold]{progress.step}[/]/{self._steps}",
            f"loss [bold]{loss}[/]",
            f"learning rate [bold]{progress.learning_rate:.2e}[/]",
            f"decided in [bold]{_percentiles(self._delays_ms)}[/]",
            f"coverage [bold]{self._coverage()}[/]",
        )
        return Panel(
            Group(
                figures,
                _progress_row(self._steps, progress.step),
                Text(f"loss  {sparkline(self._losses)}", style="cyan"),
                seed_row(progress.seeds),
                decision_table(self._arrivals),
            ),
            title="Tamiyo stream · a character transformer learns Python's standard library",
        )

    def _coverage(self) -> str:
        return self._arrivals[-1].command.annotations.get("feature_coverage", "–") if self._arrivals else "–"


def _progress_row(steps: int, done: int) -> Table:
    row = Table.grid(expand=True)  # a bare bar ends without a line break and swallows what follows
    row.add_row(ProgressBar(total=steps, completed=done))
    return row


def seed_row(stages: Mapping[str, str]) -> Text:
    """Return each seed with its stage, and how far along its life that is."""
    row = Text("seeds ")
    for seed_id, stage in stages.items():
        row.append(f" {seed_id} ", style="dim")
        row.append(f"{_LIFE.get(stage, '·')} {stage.lower()}", style=_STAGE_STYLES.get(stage, ""))
    return row if stages else row.append(" none: Kasmina sends nothing", style="dim")


def decision_table(arrivals: Iterable[Arrival]) -> Table:
    """Return the newest decisions, oldest first."""
    table = Table(expand=True, box=None, header_style="dim")
    for title in ("step", "decision", "reason", "risk", "attends to", "effect"):
        table.add_column(title, no_wrap=True)
    for arrival in arrivals:
        notes = arrival.command.annotations
        table.add_row(
            str(arrival.command.global_step),
            notes.get("policy_action_name", arrival.command.command_type.name.lower()),
            notes.get("risk_reason", ""),
            notes.get("policy_risk_score", "–")[:5],
            _attended(notes),
            arrival.effect,
        )
    return table


def describe(arrival: Arrival) -> str:
    """Return one decision as a short text."""
    notes = arrival.command.annotations
    action = notes.get("policy_action_name", arrival.command.command_type.name.lower())
    return (
        f"decided step {arrival.command.global_step}: {action} ({notes.get('risk_reason', '')}; {arrival.effect})"
    )


def sparkline(values: Iterable[float]) -> str:
    """Return ``values`` as a row of bars between their own extremes."""
    series = list(values)
    if not series:
        return ""
    low, high = min(series), max(series)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in series)


def _attended(notes: Mapping[str, str]) -> str:
    """Return the layer with most attention, from the ``why`` annotation."""
    _, _, rest = notes.get("why", "").partition('"layers":{"')
    return rest.partition('"')[0]


def _percentiles(values: Iterable[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "–"
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"{ordered[len(ordered) // 2]:.0f} ms (p95 {p95:.0f})"
