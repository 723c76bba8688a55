"""Spans of a step: linked to every message, one per stage, its context handed on."""

from __future__ import annotations

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tamiyo_stream.hub.tracing import StepTracer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def parent(span: str, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{span}-{flags}"}


def traced(*messages: dict[str, str], error: str = ""):
    exporter = InMemorySpanExporter()
    tracer = StepTracer(exporter, worker_id="w")
    trace = tracer.begin("oona.tolaria.state", messages)
    trace.stage("build")
    trace.stage("inference")
    trace.finish({"tamiyo.run_id": "r"}, error)
    tracer.close()
    return trace, {span.name: span for span in exporter.get_finished_spans()}


def test_a_step_has_a_span_and_one_per_stage_below_it() -> None:
    _, spans = traced()
    step = spans["process oona.tolaria.state"]
    assert set(spans) == {"process oona.tolaria.state", "tamiyo.build", "tamiyo.inference"}
    assert spans["tamiyo.build"].parent.span_id == step.context.span_id
    assert step.start_time <= spans["tamiyo.build"].start_time <= spans["tamiyo.build"].end_time
    assert spans["tamiyo.build"].end_time == spans["tamiyo.inference"].start_time
    assert step.attributes["messaging.system"] == "redis"
    assert step.attributes["tamiyo.run_id"] == "r"


def test_every_message_answered_is_linked_and_the_newest_is_the_parent() -> None:
    first, second = parent("00f067aa0ba902b7"), parent("00f067aa0ba902b8")
    trace, spans = traced(first, {}, second)
    step = spans["process oona.tolaria.state"]
    assert [f"{link.context.span_id:016x}" for link in step.links] == ["00f067aa0ba902b7", "00f067aa0ba902b8"]
    assert f"{step.parent.span_id:016x}" == "00f067aa0ba902b8"
    assert trace.carrier["traceparent"] == f"00-{TRACE}-{step.context.span_id:016x}-01"


def test_a_trace_that_is_not_sampled_is_not_written_but_handed_on() -> None:
    trace, spans = traced(parent("00f067aa0ba902b7", "00"))
    assert spans == {}
    assert trace.carrier["traceparent"].startswith(f"00-{TRACE}-")


def test_a_step_that_failed_says_why() -> None:
    _, spans = traced(error="inference_failed")
    status = spans["process oona.tolaria.state"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "inference_failed")


def test_a_message_with_a_damaged_context_is_handled_like_one_without() -> None:
    _, spans = traced({"traceparent": "00-nonsense"})
    assert spans["process oona.tolaria.state"].parent is None


def test_tracing_that_is_off_hands_nothing_on() -> None:
    trace = StepTracer(None).begin("s", [parent("00f067aa0ba902b7")])
    trace.stage("build")
    trace.finish()
    assert trace.carrier == {}
