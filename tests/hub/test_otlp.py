"""Figures and spans reach an OTLP collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.meters import ExportOptions, Meters
from tamiyo_stream.hub.tracing import StepTracer


class Collector(BaseHTTPRequestHandler):
    received: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).received[self.path] = body
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, dict[str, bytes]]]:
    Collector.received = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", Collector.received
        server.shutdown()
        thread.join()


def test_figures_are_sent_with_the_name_of_the_worker(collector) -> None:
    url, received = collector
    meters = Meters(HubState(worker_id="w-1"), ExportOptions(prometheus=False, otlp_endpoint=url, version="0.1"))
    meters.add("tamiyo.decisions", 1, {"action": "hold", "reason": "policy"})
    meters.close()
    request = ExportMetricsServiceRequest.FromString(received["/v1/metrics"])
    (resource,) = request.resource_metrics
    about = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (about["service.name"], about["service.instance.id"]) == ("tamiyo-stream", "w-1")
    names = {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
    assert {"tamiyo.decisions", "tamiyo.live"} <= names


def test_spans_are_sent(collector) -> None:
    url, received = collector
    tracer = StepTracer.to_collector(url, worker_id="w-1", version="0.1", sampled=1.0)
    trace = tracer.begin("oona.tolaria.state")
    trace.stage("build")
    trace.finish()
    tracer.close()
    request = ExportTraceServiceRequest.FromString(received["/v1/traces"])
    names = [span.name for scope in request.resource_spans[0].scope_spans for span in scope.spans]
    assert sorted(names) == ["process oona.tolaria.state", "tamiyo.build"]


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert StepTracer.to_collector("", worker_id="w", version="", sampled=1.0).begin("s").carrier == {}
