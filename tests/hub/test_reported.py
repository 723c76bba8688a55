"""What risk rules may read from telemetry."""

from __future__ import annotations

import pytest

from schemas.enums import CircuitBreakerState
from tamiyo_stream.hub.aggregate import Aggregator, HubLimits
from tamiyo_stream.hub.reported import kernel_breaker, reported
from tests.hub.samples import NOW, SECOND, packet, point


def test_fresh_figures_carry_the_names_of_the_training_metrics() -> None:
    hub = Aggregator(HubLimits(fresh_ms=1000))
    hub.ingest(packet(point("tolaria.hook.latency_s", 0.02, "s"), point("tolaria.training.loss", 2.0)), NOW)
    hub.ingest(packet(point("kasmina.isolation.violations", 0.0), source="kasmina"), NOW + SECOND)
    assert reported(hub, "run", NOW + SECOND) == {
        "hook_latency_ms": 20.0,
        "loss": 2.0,
        "kasmina.isolation.violations": 0.0,
    }
    assert reported(hub, "run", NOW + 2 * SECOND) == {"kasmina.isolation.violations": 0.0}
    assert reported(hub, "other", NOW) == {}


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (1.0, CircuitBreakerState.CLOSED),
        (2.0, CircuitBreakerState.OPEN),
        (9.0, CircuitBreakerState.UNKNOWN),
        (1.5, CircuitBreakerState.UNKNOWN),
        (None, CircuitBreakerState.UNKNOWN),
    ],
)
def test_kasminas_breaker_is_known_where_it_is_reported(value: float | None, state: CircuitBreakerState) -> None:
    hub = Aggregator()
    if value is not None:
        hub.ingest(packet(point("kasmina.breaker.state", value), source="kasmina"), NOW)
    assert kernel_breaker(hub, "run", NOW) is state
