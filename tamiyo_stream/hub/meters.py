"""Records the instruments of the table and exports them: Prometheus text, OTLP, both or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from schemas.enums import TelemetryLevel
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub import instruments as names
from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.instruments import INSTRUMENTS, Instrument, Kind
from tamiyo_stream.hub.observations import OBSERVATIONS, Read

SCOPE = "tamiyo_stream"
MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Where figures go. ``otlp_endpoint``: base URL of a collector, as http://collector:4318; empty = nowhere."""

    prometheus: bool = True
    otlp_endpoint: str = ""
    otlp_interval_s: float = 15.0
    version: str = ""

    @property
    def on(self) -> bool:
        """Whether anybody will read the figures."""
        return self.prometheus or bool(self.otlp_endpoint)


def resource_of(worker_id: str, version: str) -> Resource:
    """Return what every figure and span of this worker carries about it."""
    about = {"service.name": "tamiyo-stream", "service.instance.id": worker_id, "service.version": version}
    return Resource.create({name: text for name, text in about.items() if text})


class Meters:
    """The instruments of one worker. With ``options`` off every call returns at once.

    Args:
        state: what the gauges read when somebody scrapes.
    """

    def __init__(self, state: HubState, options: ExportOptions | None = None) -> None:
        self.options = options or ExportOptions()
        self._registry = CollectorRegistry()
        self._provider: MeterProvider | None = None
        self._on = self.options.on
        if self._on:
            self._provider = MeterProvider(
                self._readers(),
                resource=resource_of(state.worker_id, self.options.version),
                shutdown_on_exit=False,
            )
        provider = self._provider or NoOpMeterProvider()
        meter = provider.get_meter(SCOPE)
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        for instrument in INSTRUMENTS:
            self._create(meter, instrument, state)

    def add(self, name: str, amount: float = 1, attributes: Mapping[str, str] | None = None) -> None:
        """Add ``amount`` to the counter ``name`` of the table."""
        if self._on:
            self._counters[name].add(amount, attributes)

    def record(self, name: str, value: float, attributes: Mapping[str, str] | None = None) -> None:
        """Record ``value``, in the table's unit, in the histogram ``name``."""
        if self._on:
            self._histograms[name].record(value, attributes)

    def consumed(self, stream: str, count: int, group: str) -> None:
        """Count entries read from ``stream``."""
        self.add(names.CONSUMED, count, {**_bus(stream, "claim"), names.CONSUMER_GROUP: group})

    def sent(self, stream: str, count: int = 1) -> None:
        """Count entries published on ``stream``."""
        self.add(names.SENT, count, _bus(stream, "commit"))

    def operated(self, operation: str, stream: str, seconds: float, error: str = "") -> None:
        """Record a Redis operation of the bus (``claim``, ``commit``); ``error``: class of what it raised."""
        self.record(names.OPERATION, seconds, _with_error(_bus(stream, operation), error))

    def processed(self, stream: str, seconds: float, error: str = "") -> None:
        """Record the handling of one entry, from its claim to its commit."""
        self.record(names.PROCESS, seconds, _with_error(_bus(stream, "process"), error))

    def decided(self, action: str, packet: TelemetryPacket, stages_ms: Mapping[str, float]) -> None:
        """Record a committed decision from its telemetry ``packet``; ``stages_ms``: time per stage."""
        if not self._on:
            return
        indicators = packet.system_health.indicators if packet.system_health else {}
        self.add(names.DECISIONS, 1, {"action": action, "reason": indicators.get("reason", "")})
        figures = {point.name: point.value for point in packet.metrics}
        took, budget = figures.get("tamiyo.decision.latency_ms"), figures.get("tamiyo.decision.budget_ms")
        if took is not None:
            self.record(names.DECISION_TIME, took)
            if budget is not None and took > budget:
                self.add(names.DEADLINE_MISSED)
        for stage, milliseconds in stages_ms.items():
            self.record(names.STAGE_TIME, milliseconds, {"stage": stage})
        self.reported(packet)

    def reported(self, packet: TelemetryPacket) -> None:
        """Count the events of a packet that Tamiyo publishes."""
        if not self._on:
            return
        for event in packet.events:
            about = {"event": event.description, "level": TelemetryLevel(event.level).name}
            if "provenance" in event.attributes:
                about["provenance"] = event.attributes["provenance"].lower()
            self.add(names.EVENTS, 1, about)

    def exposition(self) -> bytes:
        """Return the Prometheus text of now; to be called from a worker thread (milliseconds)."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Send what is left to the collector and stop; blocks for the export."""
        if self._provider is not None:
            self._provider.shutdown()

    def _readers(self) -> list[MetricReader]:
        readers = list[MetricReader]()
        if self.options.prometheus:
            readers.append(PrometheusMetricReader(registry=self._registry, scope_info_enabled=False))
        if self.options.otlp_endpoint:
            exporter = OTLPMetricExporter(f"{self.options.otlp_endpoint.rstrip('/')}/v1/metrics")
            interval = self.options.otlp_interval_s * MS_PER_S
            readers.append(PeriodicExportingMetricReader(exporter, interval))
        return readers

    def _create(self, meter: Meter, one: Instrument, state: HubState) -> None:
        about = {"unit": one.unit, "description": one.description}
        if one.kind is Kind.COUNTER:
            counter = self._counters[one.name] = meter.create_counter(one.name, **about)
            if not one.attributes:
                counter.add(0)  # there from the start: an alert on its increase must see the first one
        elif one.kind is Kind.HISTOGRAM:
            self._histograms[one.name] = meter.create_histogram(
                one.name, **about, explicit_bucket_boundaries_advisory=one.bounds
            )
        else:
            observe = _callback(OBSERVATIONS[one.name], state)
            create = meter.create_observable_gauge if one.kind is Kind.GAUGE else meter.create_observable_counter
            create(one.name, [observe], **about)


def _callback(read: Read, state: HubState) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> list[Observation]:
        return [Observation(value, attributes) for value, attributes in read(state)]

    return observe


def _bus(stream: str, operation: str) -> dict[str, str]:
    return {names.SYSTEM: names.REDIS, names.DESTINATION: stream, names.OPERATION_NAME: operation}


def _with_error(attributes: dict[str, str], error: str) -> dict[str, str]:
    return {**attributes, names.ERROR_TYPE: error} if error else attributes
