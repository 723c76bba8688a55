"""The newest value of every series of every run, and the one packet per interval that shows them together.

Pure: packets and the time go in, packets come out. Tolaria's and Kasmina's packets are normalised
(:mod:`tamiyo_stream.hub.normalise`). Tamiyo's own steps come by :meth:`Aggregator.record_step`, never from the
bus: what Tamiyo published is ignored there, so that nothing goes round in circles.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.enums import HealthStatus, MessagePriority
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket
from tamiyo_stream.hub.normalise import spell

OWN_SOURCE = "tamiyo"
SOURCES = frozenset({"tolaria", "kasmina"})
NS_PER_MS = 1_000_000
#: Room of a consolidated packet, below the wire's 1 MiB and 4096 points.
PACKET_BYTES = 768 * 1024
PACKET_POINTS = 3000
#: A point's bytes beside its texts: map headers, field names, the value.
POINT_OVERHEAD = 64
MAX_ATTRIBUTES = 8
MAX_TEXT = 200


class Verdict(StrEnum):
    """What became of a packet."""

    TAKEN = "taken"
    OWN = "own"
    UNKNOWN_SOURCE = "unknown_source"
    OLDER = "older"


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Bounds of what is held; ``series`` is per run and source.

    ``fresh_ms``: a value older than this is left out, a source silent for longer is stale. ``keep_ms``: a run of
    which nothing was heard for longer is dropped.
    """

    runs: int = 1024
    series: int = 2048
    events: int = 64
    fresh_ms: float = 30_000.0
    keep_ms: float = 900_000.0


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What the aggregator holds and has dropped, since start."""

    runs: int
    series: int
    packets: Mapping[str, int]
    dropped: int
    evicted_runs: int


#: Name and sorted attributes.
SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Sample:
    """The newest value of a series. ``seen_ns``: when it reached us, Unix time."""

    value: float
    unit: str
    seen_ns: int


@dataclass(slots=True)
class _Source:
    """One source's part of a run; the series heard of longest ago comes first."""

    seen_ns: int = 0
    stamp_ns: int = 0
    health: SystemHealth | None = None
    series: dict[SeriesKey, Sample] = field(default_factory=dict)
    step: TelemetryPacket | None = None


@dataclass(slots=True)
class _Run:
    sources: dict[str, _Source] = field(default_factory=dict)
    events: deque[TelemetryEvent] = field(default_factory=deque)
    packets: int = 0
    dropped: int = 0
    changed: bool = False


class Aggregator:
    """Holds the newest telemetry of every run. Times are Unix ns, given by the caller."""

    def __init__(self, limits: HubLimits | None = None) -> None:
        self._limits = limits or HubLimits()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._packets: dict[str, int] = dict.fromkeys(Verdict, 0)
        self._dropped = 0
        self._evicted = 0

    def ingest(self, packet: TelemetryPacket, now_ns: int) -> Verdict:
        """Take a packet read from the bus; say what became of it."""
        verdict = self._judge(packet)
        self._packets[verdict] += 1
        if verdict is Verdict.TAKEN:
            self._take(packet, now_ns)
        return verdict

    def record_step(self, packet: TelemetryPacket, now_ns: int) -> None:
        """Take the packet that Tamiyo publishes with a step. Its events are out already, they are not repeated."""
        run = self._run(packet.run_id or "")
        source = run.sources.setdefault(OWN_SOURCE, _Source())
        source.seen_ns, source.health, source.step = now_ns, packet.system_health, packet
        run.changed = True

    def consolidate(self, now_ns: int, owns: Callable[[str], bool] = lambda _: True) -> list[TelemetryPacket]:
        """Return one packet per run that was heard of since the last call; drop what has fallen silent.

        Args:
            now_ns: the packets' time.
            owns: whether a run (empty = the platform) is this worker's to tell of; all workers hear of all runs.
        """
        self._drop_silent(now_ns)
        packets = []
        for run_id, run in self._runs.items():
            if run.changed and owns(run_id):
                run.packets += 1
                packets.append(self._packet(run_id, run, now_ns))
            run.events.clear()
            run.changed = False
        return packets

    def value(self, run_id: str, source: str, name: str, now_ns: int) -> float | None:
        """Return the fresh value of the metric ``name`` without attributes; None where there is none."""
        run = self._runs.get(run_id)
        held = run.sources.get(source) if run is not None else None
        sample = held.series.get((name, ())) if held is not None else None
        return sample.value if sample is not None and self._fresh(sample.seen_ns, now_ns) else None

    def samples(self, now_ns: int) -> Iterator[tuple[str, str, Mapping[str, str], Sample]]:
        """Yield run id, name, attributes and value of every fresh series."""
        for run_id, run in list(self._runs.items()):
            for source in list(run.sources.values()):
                for (name, attributes), sample in _series(source):
                    if self._fresh(sample.seen_ns, now_ns):
                        yield run_id, name, dict(attributes), sample

    def ages(self, now_ns: int) -> Iterator[tuple[str, str, float]]:
        """Yield run id, source and age in ms of the source's newest packet."""
        for run_id, run in list(self._runs.items()):
            for name, source in run.sources.items():
                yield run_id, name, _age_ms(source, now_ns)

    def statistics(self) -> HubStatistics:
        """Return what is held and was dropped."""
        return HubStatistics(
            runs=len(self._runs),
            series=sum(len(source.series) for run in self._runs.values() for source in run.sources.values()),
            packets=dict(self._packets),
            dropped=self._dropped,
            evicted_runs=self._evicted,
        )

    def _judge(self, packet: TelemetryPacket) -> Verdict:
        if packet.source_subsystem == OWN_SOURCE:
            return Verdict.OWN
        if packet.source_subsystem not in SOURCES:
            return Verdict.UNKNOWN_SOURCE
        run = self._runs.get(packet.run_id or "")
        known = run.sources.get(packet.source_subsystem) if run is not None else None
        # Packets of one moment complement each other (Kasmina: one per seed); an older one only takes us back.
        return Verdict.OLDER if known is not None and packet.timestamp < known.stamp_ns else Verdict.TAKEN

    def _take(self, packet: TelemetryPacket, now_ns: int) -> None:
        run = self._run(packet.run_id or "")
        source = run.sources.setdefault(packet.source_subsystem, _Source())
        source.health = _worse(
            source.health, packet.system_health, same_moment=source.stamp_ns == packet.timestamp
        )
        # A clock that runs ahead must not make everything after it look old.
        source.seen_ns, source.stamp_ns = now_ns, min(packet.timestamp, now_ns)
        run.changed = True
        for point in packet.metrics:
            if math.isfinite(point.value):
                spelling = spell(packet.source_subsystem, point.name, point.unit)
                key = (spelling.name, _attributes(point))
                self._store(run, source, key, Sample(point.value * spelling.factor, spelling.unit, now_ns))
        for event in packet.events:
            self._remember(run, event, packet.source_subsystem)

    def _run(self, run_id: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Run()
            while len(self._runs) > self._limits.runs:
                self._runs.popitem(last=False)
                self._evicted += 1
        self._runs.move_to_end(run_id)
        return run

    def _store(self, run: _Run, source: _Source, key: SeriesKey, sample: Sample) -> None:
        source.series.pop(key, None)
        source.series[key] = sample
        if len(source.series) > self._limits.series:
            del source.series[next(iter(source.series))]
            self._drop(run)

    def _remember(self, run: _Run, event: TelemetryEvent, source: str) -> None:
        if len(run.events) >= self._limits.events:
            run.events.popleft()
            self._drop(run)
        attributes = {
            name[:MAX_TEXT]: text[:MAX_TEXT] for name, text in list(event.attributes.items())[:MAX_ATTRIBUTES]
        }
        run.events.append(
            TelemetryEvent(
                event_id=event.event_id[:MAX_TEXT],
                description=event.description,
                level=event.level,
                attributes={**attributes, "source": source},
            )
        )

    def _fresh(self, seen_ns: int, now_ns: int) -> bool:
        return now_ns - seen_ns <= self._limits.fresh_ms * NS_PER_MS

    def _drop_silent(self, now_ns: int) -> None:
        for run_id, run in list(self._runs.items()):
            if all(_age_ms(source, now_ns) > self._limits.keep_ms for source in run.sources.values()):
                del self._runs[run_id]

    def _drop(self, run: _Run) -> None:
        run.dropped += 1
        self._dropped += 1

    def _packet(self, run_id: str, run: _Run, now_ns: int) -> TelemetryPacket:
        fresh = {name for name, source in run.sources.items() if self._fresh(source.seen_ns, now_ns)}
        points = [*self._own_points(run, fresh, now_ns), *self._fresh_points(run, fresh, now_ns)]
        kept = _within_room(points)
        run.dropped += len(points) - len(kept)
        self._dropped += len(points) - len(kept)
        if run.dropped:
            kept.append(MetricPoint(name="tamiyo.hub.dropped_total", value=float(run.dropped), unit="count"))
        return TelemetryPacket(
            packet_id=f"tamiyo-hub-{run_id[:100] or 'platform'}-{run.packets}",
            timestamp=now_ns,
            source_subsystem=OWN_SOURCE,
            run_id=run_id or None,
            metrics=kept,
            events=[_renumbered(event, number) for number, event in enumerate(run.events, start=1)],
            system_health=_health(run, fresh),
        )

    def _own_points(self, run: _Run, fresh: set[str], now_ns: int) -> Iterator[MetricPoint]:
        for name, source in sorted(run.sources.items()):
            about = {"source": name}
            yield MetricPoint(name="tamiyo.hub.age_ms", value=_age_ms(source, now_ns), unit="ms", attributes=about)
            yield MetricPoint(
                name="tamiyo.hub.stale", value=float(name not in fresh), unit="bool", attributes=about
            )

    def _fresh_points(self, run: _Run, fresh: set[str], now_ns: int) -> Iterator[MetricPoint]:
        # Tamiyo's own first: where room is short, what others report can be read from them.
        for name in sorted(fresh, key=lambda source: (source != OWN_SOURCE, source)):
            for (metric, attributes), sample in _series(run.sources[name]):
                if self._fresh(sample.seen_ns, now_ns):
                    yield MetricPoint(
                        name=metric, value=sample.value, unit=sample.unit, attributes=dict(attributes)
                    )


def _series(source: _Source) -> Iterator[tuple[SeriesKey, Sample]]:
    yield from list(source.series.items())  # copied in one go: a scrape walks it from another thread
    if source.step is not None:
        for point in source.step.metrics:
            yield (point.name, _attributes(point)), Sample(point.value, point.unit, source.seen_ns)


def _age_ms(source: _Source, now_ns: int) -> float:
    return max(0, now_ns - source.seen_ns) / NS_PER_MS


def _attributes(point: MetricPoint) -> tuple[tuple[str, str], ...]:
    if not point.attributes:
        return ()
    items = sorted(point.attributes.items())[:MAX_ATTRIBUTES]
    return tuple((name[:MAX_TEXT], text[:MAX_TEXT]) for name, text in items)


def _within_room(points: list[MetricPoint]) -> list[MetricPoint]:
    used, kept = 0, list[MetricPoint]()
    for point in points[:PACKET_POINTS]:
        texts = sum(len(name.encode()) + len(text.encode()) for name, text in point.attributes.items())
        used += POINT_OVERHEAD + len(point.name.encode()) + texts
        if used > PACKET_BYTES:
            break
        kept.append(point)
    return kept


def _worse(old: SystemHealth | None, new: SystemHealth | None, *, same_moment: bool) -> SystemHealth | None:
    if old is None or new is None or not same_moment:
        return new if new is not None else old
    return new if new.status >= old.status else old


def _renumbered(event: TelemetryEvent, number: int) -> TelemetryEvent:
    return TelemetryEvent(
        event_id=f"evt-{number}",
        description=event.description,
        level=event.level,
        attributes=event.attributes,
    )


def _health(run: _Run, fresh: set[str]) -> SystemHealth:
    """Return the worst health among the fresh sources; a stale source degrades the whole."""
    known = {name: source.health for name, source in run.sources.items() if source.health is not None}
    indicators = dict(known[OWN_SOURCE].indicators) if OWN_SOURCE in known else {}
    indicators |= {
        f"{name}_health": known[name].status.name.lower() if name in fresh else "stale"
        for name in sorted(known)
        if name != OWN_SOURCE
    }
    # Urgent packets went out at once, each on its own: this one only repeats them.
    indicators["priority"] = f"MESSAGE_PRIORITY_{MessagePriority.NORMAL.name}"
    worst = max((known[name] for name in known if name in fresh), key=lambda one: one.status, default=None)
    status = worst.status if worst is not None else HealthStatus.UNKNOWN
    summary = worst.summary if worst is not None else ""
    stale = sorted(set(run.sources) - fresh)
    if stale and status <= HealthStatus.HEALTHY:
        status, summary = HealthStatus.DEGRADED, f"nothing new from {', '.join(stale)}"
    return SystemHealth(status=status, summary=summary or "stable", indicators=indicators)
