"""Spans of a step: one that links every message it answers, and one below it per stage.

The step's span is opened before its commit, so that what is published can carry its context; everything else is
written down after the commit, off the decision's path. Off, a step costs a comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tamiyo_stream.hub.instruments import DESTINATION, OPERATION_NAME, REDIS, SYSTEM
from tamiyo_stream.hub.meters import SCOPE, resource_of

_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(slots=True)
class StepTrace:
    """The trace of one step; without a span (tracing off) nothing is written.

    ``carrier``: the ``traceparent`` and ``tracestate`` that what the step publishes shall carry.
    """

    carrier: Mapping[str, str] = field(default_factory=dict)
    _tracer: Tracer | None = None
    _span: Span | None = None
    _stages: list[tuple[str, int, int]] = field(default_factory=list)
    _mark_ns: int = 0

    def stage(self, name: str) -> None:
        """Say that the stage ``name`` has ended; it began where the one before ended."""
        if self._span is not None:
            now = time.time_ns()
            self._stages.append((name, self._mark_ns, now))
            self._mark_ns = now

    def finish(self, attributes: Mapping[str, str | int | float] | None = None, error: str = "") -> None:
        """Write the spans, after the commit. ``error``: why the step failed."""
        if self._span is None or self._tracer is None:
            return
        context = set_span_in_context(self._span)
        for name, start, end in self._stages:
            self._tracer.start_span(f"tamiyo.{name}", context, start_time=start).end(end)
        for name, value in (attributes or {}).items():
            self._span.set_attribute(name, value)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class StepTracer:
    """Opens the spans of steps.

    Args:
        exporter: where spans go; None = tracing is off.
        sampled: share of the traces begun here that are kept; a sampled parent's are always kept.
    """

    def __init__(
        self, exporter: SpanExporter | None, *, worker_id: str = "", version: str = "", sampled: float = 1.0
    ) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        if exporter is not None:
            self._provider = TracerProvider(
                ParentBasedTraceIdRatio(sampled), resource_of(worker_id, version), shutdown_on_exit=False
            )
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            tracer = self._provider.get_tracer(SCOPE)
            assert isinstance(tracer, Tracer)  # noqa: S101 - the SDK's provider makes the SDK's tracers
            self._tracer = tracer

    @classmethod
    def to_collector(cls, endpoint: str, *, worker_id: str, version: str, sampled: float) -> StepTracer:
        """Return a tracer that exports to the collector at ``endpoint`` (base URL); off where it is empty."""
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces") if endpoint else None
        return cls(exporter, worker_id=worker_id, version=version, sampled=sampled)

    def begin(self, stream: str, messages: Iterable[Mapping[str, str]] = ()) -> StepTrace:
        """Open the span of a step read from ``stream``; ``messages``: the trace fields of each entry it answers.

        The newest message that carries a context is the parent, all of them are linked.
        """
        if self._tracer is None:
            return StepTrace()
        contexts = [_PROPAGATOR.extract(dict(fields)) for fields in messages if fields.get("traceparent")]
        links = [Link(get_current_span(context).get_span_context()) for context in contexts]
        now = time.time_ns()
        span = self._tracer.start_span(
            f"process {stream}",
            contexts[-1] if contexts else None,
            kind=SpanKind.CONSUMER,
            links=links,
            start_time=now,
            attributes={SYSTEM: REDIS, DESTINATION: stream, OPERATION_NAME: "process"},
        )
        carrier = dict[str, str]()
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        # A trace that is not sampled still hands its context on.
        return StepTrace(carrier, self._tracer, span, [], now) if span.is_recording() else StepTrace(carrier)

    def close(self) -> None:
        """Send what is left and stop; blocks for the export."""
        if self._provider is not None:
            self._provider.shutdown()
