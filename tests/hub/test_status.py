"""The terminal's view of the platform, from the bus alone."""

from __future__ import annotations

from rich.console import Console

from schemas.enums import HealthStatus
from tamiyo_stream.hub.aggregate import Aggregator
from tamiyo_stream.hub.status import render_status
from tests.hub.samples import NOW, SECOND, health, packet, point


def shown(packets, now=NOW) -> str:
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(render_status(packets, now))
    return capture.get()


def step(**given):
    return packet(
        point("tamiyo.training_loss", 2.5),
        point("tamiyo.decision.latency_ms", 50.0),
        point("tamiyo.decision.budget_ms", 45.0),
        point("tamiyo.gnn.feature_coverage", 0.9),
        point("tamiyo.gnn.feature_coverage.node.seed", 0.5),
        point("tamiyo.conservative_mode", 1.0),
        point("tamiyo.breaker.inference_state", 2.0),
        source="tamiyo",
        system_health=health(HealthStatus.DEGRADED, "loss_spike", step_index="7"),
        **given,
    )


def test_a_run_shows_health_step_loss_latency_inputs_and_mode() -> None:
    text = shown([step()])
    for part in ("run", "degraded: loss_spike", "7", "2.500", "50.0 of 45 ms", "90%", "node.seed 50%"):
        assert part in text
    assert "conservative, inference open" in text


def test_a_run_of_which_nothing_is_heard_is_silent() -> None:
    assert "silent for 60 s" in shown([step()], NOW + 60 * SECOND)


def test_the_ages_of_the_sources_come_from_the_consolidated_packet() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", 1.0)), NOW - 4 * SECOND)
    text = shown([step(), *hub.consolidate(NOW)])
    assert "run: tolaria 4 s ago" in text
    assert "2.500" in text


def test_without_telemetry_it_says_what_to_look_for() -> None:
    assert "is a worker running" in shown([packet(source="tolaria")])


def test_what_is_not_known_is_a_dash() -> None:
    text = shown([packet(source="tamiyo")])
    assert "–" in text
    assert "unknown" in text
