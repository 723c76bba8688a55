"""What the operator panel shows of each run: its model, seeds, decisions and the last minutes.

Fed on the step path, so feeding stores references and a few numbers; what is shown is worked out when somebody
looks (:mod:`tamiyo_stream.hub.panel_view`). Times are Unix ns, given by the caller.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.kasmina import SeedState
from schemas.record import Column
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from schemas.urza import Blueprint
from tamiyo_stream.hub.picture import Picture, draw

NS_PER_S = 1_000_000_000
#: Metric -> what a bin of the history keeps of it.
HISTORY: Mapping[str, str] = {
    "tamiyo.training_loss": "loss",
    "tamiyo.decision.latency_ms": "latency_ms",
    "tamiyo.policy.risk_score": "risk",
    "tamiyo.gnn.feature_coverage": "coverage",
}
#: Figures of which a bin keeps the largest value; of the others it keeps the mean.
PEAKS = frozenset({"latency_ms", "risk"})


@dataclass(frozen=True, slots=True)
class PanelLimits:
    """Bounds of what is held: runs shown, decisions kept over all of them, seconds of history, latencies.

    ``keep_s``: a run silent for longer is no longer shown.
    """

    runs: int = 64
    decisions: int = 400
    history_s: int = 300
    latencies: int = 512
    keep_s: int = 3600


@dataclass(frozen=True, slots=True)
class Shown:
    """A decision as the panel numbers them: ``number`` grows by one with each."""

    number: int
    seen_ns: int
    command: AdaptationCommand


@dataclass(slots=True)
class Bin:
    """One second of a run. ``sums``: by figure, how many values and their sum, or the largest."""

    second: int
    steps: int = 0
    sums: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        """Take one value of ``figure``."""
        count, total = self.sums.get(figure, (0, 0.0))
        self.sums[figure] = (1, max(total, value)) if figure in PEAKS else (count + 1, total + value)

    def values(self) -> dict[str, float]:
        """Return the bin's figures."""
        return {figure: total / count for figure, (count, total) in self.sums.items()}


@dataclass(slots=True)
class RunView:
    """What is held of a run. ``gradient_norms``: of the newest step, in the blueprint's order."""

    run_id: str
    seen_ns: int = 0
    packet: TelemetryPacket | None = None
    command: AdaptationCommand | None = None
    blueprint: Blueprint | None = None
    seeds: Sequence[SeedState] = ()
    gradient_norms: Column | None = None
    history: deque[Bin] = field(default_factory=deque)
    latencies: deque[float] = field(default_factory=deque)
    decisions: int = 0
    late: int = 0
    _picture: Picture | None = None

    def picture(self) -> Picture | None:
        """Return the picture of the model, drawn once per blueprint version."""
        if self.blueprint is None:
            return None
        known = self._picture
        if known is None or known.blueprint_version != self.blueprint.blueprint_version:
            self._picture = draw(self.blueprint)
        return self._picture


class PanelState:
    """Everything the panel shows that telemetry alone does not tell."""

    def __init__(self, limits: PanelLimits | None = None) -> None:
        self._limits = limits or PanelLimits()
        self._runs: OrderedDict[str, RunView] = OrderedDict()
        self._decisions: deque[Shown] = deque(maxlen=self._limits.decisions)
        self._number = 0

    def step(self, command: AdaptationCommand, packet: TelemetryPacket, now_ns: int) -> None:
        """Take a committed decision and its telemetry."""
        run = self.run(command.run_id, now_ns)
        run.command, run.decisions = command, run.decisions + 1
        self._number += 1
        self._decisions.append(Shown(self._number, now_ns, command))
        self.packet(packet, now_ns)

    def packet(self, packet: TelemetryPacket, now_ns: int) -> None:
        """Take the telemetry of a step; that of a step without a decision tells of refusals alone."""
        run = self.run(packet.run_id or "", now_ns)
        figures = {point.name: point.value for point in packet.metrics}
        latency = figures.get("tamiyo.decision.latency_ms")
        if latency is None:
            return
        run.packet = packet
        run.latencies.append(latency)
        run.late += latency > figures.get("tamiyo.decision.budget_ms", float("inf"))
        self._bin(run, now_ns).steps += 1
        for name, figure in HISTORY.items():
            if name in figures:
                run.history[-1].add(figure, figures[name])

    def model(self, run_id: str, blueprint: Blueprint, now_ns: int) -> None:
        """Take the host model of a run."""
        self.run(run_id, now_ns).blueprint = blueprint

    def seeds(self, run_id: str, seeds: Sequence[SeedState], now_ns: int) -> None:
        """Take a run's newest seeds."""
        self.run(run_id, now_ns).seeds = seeds

    def layers(self, run_id: str, gradient_norms: Column | None, now_ns: int) -> None:
        """Take the newest gradient norm of every layer, in the blueprint's order; None = not measured."""
        self.run(run_id, now_ns).gradient_norms = gradient_norms

    def run(self, run_id: str, now_ns: int) -> RunView:
        """Return the view of a run, a new one where it is not known; the run longest silent leaves."""
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = RunView(run_id, latencies=deque(maxlen=self._limits.latencies))
            while len(self._runs) > self._limits.runs:
                self._runs.popitem(last=False)
        run.seen_ns = now_ns
        self._runs.move_to_end(run_id)
        return run

    def drop_silent(self, now_ns: int) -> None:
        """Drop the runs of which nothing was heard for long."""
        for run_id, run in list(self._runs.items()):
            if now_ns - run.seen_ns > self._limits.keep_s * NS_PER_S:
                del self._runs[run_id]

    def runs(self) -> list[RunView]:
        """Return the runs held, by name."""
        return sorted(self._runs.values(), key=lambda run: run.run_id)

    def decisions_after(self, number: int) -> Iterator[Shown]:
        """Yield the decisions held that came after ``number``, newest first."""
        for shown in reversed(self._decisions):
            if shown.number <= number:
                return
            yield shown

    @property
    def newest(self) -> int:
        """Number of the newest decision; 0 before the first."""
        return self._number

    def _bin(self, run: RunView, now_ns: int) -> Bin:
        second = now_ns // NS_PER_S
        if not run.history or run.history[-1].second < second:
            run.history.append(Bin(second))
        while run.history[0].second <= second - self._limits.history_s:
            run.history.popleft()
        return run.history[-1]
