"""The aggregator: newest values, freshness, bounds, and one packet per run and interval."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import encode_payload
from schemas.enums import HealthStatus, MessagePriority, TelemetryLevel
from tamiyo_stream.hub.aggregate import Aggregator, HubLimits, Verdict
from tests.hub.samples import NOW, SECOND, event, health, packet, point


def values_of(packet) -> dict[str, float]:
    return {
        metric.name + "".join(f"/{text}" for text in metric.attributes.values()): metric.value
        for metric in packet.metrics
    }


def test_the_newest_value_of_each_series_is_sent_on_with_the_platforms_own() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", 2.0, "loss")), NOW)
    hub.ingest(packet(point("tolaria.training.loss", 1.5, "loss"), timestamp=NOW + SECOND), NOW + SECOND)
    hub.ingest(packet(point("kasmina.seed.alpha", 0.25, "ratio", seed_id="a"), source="kasmina"), NOW + SECOND)
    hub.record_step(packet(point("tamiyo.policy.risk_score", 0.4), source="tamiyo"), NOW + SECOND)

    (sent,) = hub.consolidate(NOW + SECOND)

    assert values_of(sent) == {
        "tamiyo.hub.age_ms/kasmina": 0.0,
        "tamiyo.hub.age_ms/tamiyo": 0.0,
        "tamiyo.hub.age_ms/tolaria": 0.0,
        "tamiyo.hub.stale/kasmina": 0.0,
        "tamiyo.hub.stale/tamiyo": 0.0,
        "tamiyo.hub.stale/tolaria": 0.0,
        "tamiyo.policy.risk_score": 0.4,
        "tolaria.training.loss": 1.5,
        "kasmina.seed.alpha/a": 0.25,
    }
    assert (sent.source_subsystem, sent.run_id, sent.timestamp) == ("tamiyo", "run", NOW + SECOND)
    assert sent.priority is MessagePriority.NORMAL


def test_what_tamiyo_published_is_not_taken_from_the_bus_again() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", 2.0)), NOW)
    (sent,) = hub.consolidate(NOW)
    assert hub.ingest(sent, NOW) is Verdict.OWN
    assert hub.consolidate(NOW + SECOND) == []


def test_a_subsystem_that_is_not_consolidated_is_counted_and_left_alone() -> None:
    hub = Aggregator()
    assert hub.ingest(packet(point("urza.hits", 1.0), source="urza"), NOW) is Verdict.UNKNOWN_SOURCE
    assert hub.statistics().packets[Verdict.UNKNOWN_SOURCE] == 1
    assert hub.statistics().runs == 0


def test_an_older_packet_does_not_take_values_back() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", 1.0), timestamp=NOW), NOW)
    assert hub.ingest(packet(point("tolaria.training.loss", 9.0), timestamp=NOW - 1), NOW) is Verdict.OLDER
    assert hub.value("run", "tolaria", "tolaria.training.loss", NOW) == 1.0


def test_a_clock_that_runs_ahead_does_not_make_what_follows_look_old() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", 1.0), timestamp=NOW + 3600 * SECOND), NOW)
    later = packet(point("tolaria.training.loss", 0.5), timestamp=NOW + SECOND)
    assert hub.ingest(later, NOW + SECOND) is Verdict.TAKEN


def test_packets_of_one_moment_complement_each_other() -> None:
    hub = Aggregator()
    for name in "ab":
        hub.ingest(packet(point("kasmina.seed.alpha", 0.5, seed_id=name), source="kasmina"), NOW)
    (sent,) = hub.consolidate(NOW)
    assert {"kasmina.seed.alpha/a", "kasmina.seed.alpha/b"} <= set(values_of(sent))


def test_a_silent_source_is_named_stale_and_its_values_are_left_out() -> None:
    hub = Aggregator(HubLimits(fresh_ms=1000))
    hub.ingest(packet(point("tolaria.training.loss", 1.0), system_health=health(HealthStatus.HEALTHY)), NOW)
    hub.record_step(packet(source="tamiyo", system_health=health(HealthStatus.HEALTHY)), NOW + 2 * SECOND)
    (sent,) = hub.consolidate(NOW + 2 * SECOND)
    found = values_of(sent)
    assert found["tamiyo.hub.stale/tolaria"] == 1.0
    assert found["tamiyo.hub.age_ms/tolaria"] == 2000.0
    assert "tolaria.training.loss" not in found
    assert sent.system_health.status is HealthStatus.DEGRADED
    assert sent.system_health.summary == "nothing new from tolaria"
    assert sent.system_health.indicators["tolaria_health"] == "stale"


def test_a_series_that_its_source_no_longer_reports_is_left_out() -> None:
    hub = Aggregator(HubLimits(fresh_ms=1000))
    hub.ingest(packet(point("kasmina.seed.alpha", 0.5, seed_id="gone"), source="kasmina"), NOW)
    later = packet(point("kasmina.seeds.active", 0.0), source="kasmina", timestamp=NOW + 2 * SECOND)
    hub.ingest(later, NOW + 2 * SECOND)
    (sent,) = hub.consolidate(NOW + 2 * SECOND)
    assert "kasmina.seed.alpha/gone" not in values_of(sent)
    assert values_of(sent)["kasmina.seeds.active"] == 0.0


def test_what_a_step_does_not_know_is_not_shown_from_the_step_before() -> None:
    hub = Aggregator()
    hub.record_step(packet(point("tamiyo.loss_delta", 0.1), source="tamiyo"), NOW)
    hub.record_step(packet(point("tamiyo.policy.risk_score", 0.1), source="tamiyo"), NOW)
    (sent,) = hub.consolidate(NOW)
    assert "tamiyo.loss_delta" not in values_of(sent)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_not_sent_on(value: float) -> None:
    hub = Aggregator()
    hub.ingest(packet(point("tolaria.training.loss", value)), NOW)
    assert hub.value("run", "tolaria", "tolaria.training.loss", NOW) is None


def test_events_of_the_interval_travel_once_with_their_source() -> None:
    hub = Aggregator()
    hub.ingest(packet(events=[event("latency_high", level=TelemetryLevel.WARNING, ms="20")]), NOW)
    (first,) = hub.consolidate(NOW)
    hub.ingest(packet(timestamp=NOW + 1), NOW + 1)
    (second,) = hub.consolidate(NOW + 1)
    assert [(one.description, one.attributes) for one in first.events] == [
        ("latency_high", {"ms": "20", "source": "tolaria"})
    ]
    assert second.events == []


def test_the_events_of_tamiyos_steps_are_out_already_and_are_not_repeated() -> None:
    hub = Aggregator()
    hub.record_step(packet(source="tamiyo", events=[event("loss_spike")]), NOW)
    (sent,) = hub.consolidate(NOW)
    assert sent.events == []


def test_an_urgent_state_is_shown_but_not_sent_as_urgent_again() -> None:
    hub = Aggregator()
    urgent = health(HealthStatus.CRITICAL, "loss_spike", priority="MESSAGE_PRIORITY_CRITICAL", mode="1")
    hub.record_step(packet(source="tamiyo", system_health=urgent), NOW)
    (sent,) = hub.consolidate(NOW)
    assert sent.priority is MessagePriority.NORMAL
    assert sent.system_health.status is HealthStatus.CRITICAL
    assert sent.system_health.indicators["mode"] == "1"


def test_the_worst_of_a_sources_packets_of_one_moment_is_its_health() -> None:
    hub = Aggregator()
    for status in (HealthStatus.UNHEALTHY, HealthStatus.HEALTHY):
        hub.ingest(packet(source="kasmina", system_health=health(status, status.name)), NOW)
    (sent,) = hub.consolidate(NOW)
    assert sent.system_health.status is HealthStatus.UNHEALTHY
    hub.ingest(packet(source="kasmina", timestamp=NOW + 1, system_health=health(HealthStatus.HEALTHY)), NOW + 1)
    (sent,) = hub.consolidate(NOW + 1)
    assert sent.system_health.status is HealthStatus.HEALTHY


def test_packets_without_a_run_are_the_platforms() -> None:
    hub = Aggregator()
    hub.ingest(packet(point("kasmina.prewarm.latency_ms", 3.0, "ms"), source="kasmina", run_id=None), NOW)
    (sent,) = hub.consolidate(NOW)
    assert sent.run_id is None
    assert sent.packet_id == "tamiyo-hub-platform-1"


def test_runs_series_and_events_are_bounded_and_what_is_dropped_is_counted() -> None:
    hub = Aggregator(HubLimits(runs=2, series=3, events=2))
    for run in "abc":
        hub.ingest(packet(point("tolaria.training.loss", 1.0), run_id=run), NOW)
    assert (hub.statistics().runs, hub.statistics().evicted_runs) == (2, 1)
    points = [point("kasmina.seed.alpha", 0.1, seed_id=str(n)) for n in range(5)]
    hub.ingest(packet(*points, source="kasmina", run_id="c", events=[event(f"e{n}") for n in range(4)]), NOW)
    assert hub.statistics().dropped == 2 + 2
    assert hub.statistics().series == 1 + 1 + 3  # of run b, of c from tolaria, of c from kasmina
    sent = next(one for one in hub.consolidate(NOW) if one.run_id == "c")
    assert values_of(sent)["tamiyo.hub.dropped_total"] == 4.0
    assert [one.description for one in sent.events] == ["e2", "e3"]


def test_a_worker_tells_of_its_own_runs_only_and_not_of_the_past_of_those_it_takes_over() -> None:
    hub = Aggregator()
    for run in "ab":
        hub.ingest(packet(point("tolaria.training.loss", 1.0), run_id=run, events=[event("latency_high")]), NOW)
    assert [one.run_id for one in hub.consolidate(NOW, lambda run: run == "a")] == ["a"]
    hub.ingest(packet(point("tolaria.training.loss", 2.0), run_id="b", timestamp=NOW + 1), NOW + 1)
    (sent,) = hub.consolidate(NOW + 1)
    assert (sent.run_id, sent.events) == ("b", [])


def test_a_value_that_is_no_longer_fresh_is_not_known() -> None:
    hub = Aggregator(HubLimits(fresh_ms=1000))
    hub.ingest(packet(point("tolaria.training.loss", 1.0)), NOW)
    assert hub.value("run", "tolaria", "tolaria.training.loss", NOW + SECOND) == 1.0
    assert hub.value("run", "tolaria", "tolaria.training.loss", NOW + 2 * SECOND) is None
    assert list(hub.samples(NOW + 2 * SECOND)) == []


def test_a_run_that_has_ended_is_dropped() -> None:
    hub = Aggregator(HubLimits(keep_ms=1000))
    hub.ingest(packet(point("tolaria.training.loss", 1.0)), NOW)
    hub.consolidate(NOW + 2 * SECOND)
    assert hub.statistics().runs == 0


def test_a_consolidated_packet_always_fits_the_wire() -> None:
    hub = Aggregator()
    long = {f"attribute-{n}-{'x' * 180}": "y" * 4000 for n in range(20)}
    for source in ("tolaria", "kasmina"):
        points = [point(f"{source}.m.{n:05}.{'n' * 150}", 1.0, "", **long) for n in range(2048)]
        hub.ingest(packet(*points, source=source, events=[event("e" * 200, **long)] * 64), NOW)
    (sent,) = hub.consolidate(NOW)
    assert len(encode_payload(sent)) < 1024 * 1024
    assert values_of(sent)["tamiyo.hub.dropped_total"] > 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tolaria", "kasmina", "tamiyo", "urza"]),
            st.sampled_from(["r1", "r2", None]),
            st.integers(0, 5),
            st.floats(allow_nan=True),
        ),
        max_size=30,
    )
)
def test_whatever_arrives_no_run_is_told_of_twice_in_an_interval(arrivals) -> None:
    hub = Aggregator(HubLimits(runs=2, series=2))
    for source, run, moment, value in arrivals:
        hub.ingest(packet(point("m", value), source=source, run_id=run, timestamp=NOW + moment), NOW + moment)
    sent = hub.consolidate(NOW + 5)
    assert len({one.run_id for one in sent}) == len(sent) <= 2
    assert all(math.isfinite(metric.value) for one in sent for metric in one.metrics)
    assert hub.consolidate(NOW + 5) == []
