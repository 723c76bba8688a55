"""What the hub knows, in one place: telemetry, feeds, model, progress. The instruments and the panel read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub.aggregate import Aggregator
from tamiyo_stream.hub.panel_state import PanelState
from tamiyo_stream.hub.progress import Progress


@dataclass(frozen=True, slots=True)
class FeedReading:
    """One stream, as of now. None = not known.

    ``lag``: entries the group has not read; ``pending``: read and not acknowledged; ``newest_ns``: Unix time of
    the newest entry; ``partition`` is -1 for a stream that has none.
    """

    stream: str
    lag: int | None = None
    pending: int | None = None
    newest_ns: int | None = None
    length: int | None = None
    partition: int = -1

    @property
    def name(self) -> str:
        """The stream's name with its partition."""
        return self.stream if self.partition < 0 else f"{self.stream}.{self.partition}"


@dataclass(frozen=True, slots=True)
class ModelInUse:
    """The policy that decides. ``compiled``: None where nobody asked for it; ``warm_ms``: time of the warm-up."""

    version: str
    digest: str = ""
    device: str = ""
    precision: str = ""
    compiled: bool | None = None
    compile_reason: str = ""
    warm_ms: float | None = None
    in_use_since_ns: int = 0


@dataclass(slots=True)
class HubState:
    """Fed by the worker's tasks, read by health, metrics and panel. ``registries``: entries by registry."""

    worker_id: str = ""
    aggregator: Aggregator = field(default_factory=Aggregator)
    progress: Progress = field(default_factory=Progress)
    panel: PanelState = field(default_factory=PanelState)
    feeds: Mapping[str, FeedReading] = field(default_factory=dict)
    feeds_read_ns: int = 0
    model: ModelInUse | None = None
    registries: Mapping[str, int] = field(default_factory=dict)

    def consolidate(self, now_ns: int, owns: Callable[[str], bool]) -> list[TelemetryPacket]:
        """Return this interval's consolidated packets, for TELEMETRY; drop what has fallen silent."""
        self.panel.drop_silent(now_ns)
        return self.aggregator.consolidate(now_ns, owns)

    def step(self, command: AdaptationCommand, packet: TelemetryPacket, now_ns: int) -> None:
        """Take a committed decision and the telemetry that was published with it."""
        self.aggregator.record_step(packet, now_ns)
        self.panel.step(command, packet, now_ns)

    def read_feeds(self, readings: list[FeedReading], now_ns: int) -> None:
        """Take a new reading of every feed."""
        self.feeds = {reading.name: reading for reading in readings}
        self.feeds_read_ns = now_ns
