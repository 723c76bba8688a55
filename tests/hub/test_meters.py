"""The instruments: every one of the table can be recorded and is found in a scrape."""

from __future__ import annotations

import time

import pytest

from schemas.enums import TelemetryLevel
from tamiyo_stream.hub import instruments as names
from tamiyo_stream.hub.hub_state import FeedReading, HubState, ModelInUse
from tamiyo_stream.hub.instruments import INSTRUMENTS, Kind
from tamiyo_stream.hub.meters import ExportOptions, Meters
from tamiyo_stream.hub.observations import OBSERVATIONS
from tests.hub.samples import event, health, packet, point
from tests.hub.scrape import full_scrape, samples_of


def lines(meters: Meters, name: str) -> list[str]:
    return [line for line in meters.exposition().decode().splitlines() if line.startswith(name)]


def test_every_instrument_of_the_table_is_in_a_scrape() -> None:
    text = full_scrape()
    assert len(samples_of(text)) >= len(INSTRUMENTS)
    for instrument in INSTRUMENTS:
        assert instrument.name.replace(".", "_") in text, instrument.name


def test_names_are_unique_and_every_gauge_has_something_to_read() -> None:
    assert len({one.name for one in INSTRUMENTS}) == len(INSTRUMENTS)
    read = {one.name for one in INSTRUMENTS if one.kind in {Kind.GAUGE, Kind.TOTAL}}
    assert read == set(OBSERVATIONS)


def test_a_decision_is_counted_timed_and_its_events_with_it() -> None:
    meters = Meters(HubState())
    told = packet(
        point("tamiyo.decision.latency_ms", 50.0),
        point("tamiyo.decision.budget_ms", 45.0),
        source="tamiyo",
        events=[event("bsds_hazard_high", TelemetryLevel.WARNING, provenance="URABRASK")],
        system_health=health(2, reason="loss_spike"),
    )
    meters.decided("pause", told, {"inference": 9.0})
    assert lines(meters, "tamiyo_decisions_total") == [
        'tamiyo_decisions_total{action="pause",reason="loss_spike"} 1.0'
    ]
    assert lines(meters, "tamiyo_deadline_missed_total") == ["tamiyo_deadline_missed_total 1.0"]
    assert lines(meters, "tamiyo_events_total") == [
        'tamiyo_events_total{event="bsds_hazard_high",level="WARNING",provenance="urabrask"} 1.0'
    ]
    assert 'tamiyo_stage_duration_milliseconds_sum{stage="inference"} 9.0' in lines(
        meters, "tamiyo_stage_duration"
    )


def test_the_bus_is_named_by_the_messaging_conventions() -> None:
    meters = Meters(HubState())
    meters.consumed("oona.tolaria.state", 3, "tamiyo")
    meters.operated("commit", "oona.tamiyo.commands", 0.001, error="TimeoutError")
    (consumed,) = lines(meters, "messaging_client_consumed_messages_total")
    assert 'messaging_destination_name="oona.tolaria.state"' in consumed
    assert 'messaging_system="redis"' in consumed
    assert 'messaging_consumer_group_name="tamiyo"' in consumed
    assert consumed.endswith(" 3.0")
    assert any(
        'error_type="TimeoutError"' in line for line in lines(meters, "messaging_client_operation_duration")
    )


def test_a_counter_without_attributes_is_there_before_anything_happened() -> None:
    assert lines(Meters(HubState()), "tamiyo_deadline_missed_total") == ["tamiyo_deadline_missed_total 0.0"]


def test_what_is_not_known_has_no_sample() -> None:
    meters = Meters(HubState())
    for name in ("tamiyo_feed_lag", "tamiyo_model_info", "tamiyo_gnn_feature_coverage", "tamiyo_validation_loss"):
        assert lines(meters, name) == []


def test_values_of_a_run_that_ended_are_no_longer_exposed() -> None:
    state = HubState()
    now = time.time_ns()
    state.aggregator.record_step(packet(point("tamiyo.validation_loss", 1.0), source="tamiyo"), now - 10**12)
    assert lines(Meters(state), "tamiyo_validation_loss") == []
    state.aggregator.record_step(packet(point("tamiyo.validation_loss", 1.0), source="tamiyo"), now)
    assert lines(Meters(state), "tamiyo_validation_loss") == ['tamiyo_validation_loss{run="run"} 1.0']


def test_a_worker_without_progress_says_so_in_its_metrics() -> None:
    state = HubState()
    state.progress.stage("claim", 1.0, time.monotonic() - 60)
    assert lines(Meters(state), "tamiyo_live") == ["tamiyo_live 0.0"]


def test_feeds_and_model_are_exposed() -> None:
    state = HubState()
    state.read_feeds(
        [FeedReading("oona.tolaria.state", lag=7, pending=2, newest_ns=time.time_ns())], time.time_ns()
    )
    state.model = ModelInUse("v1", digest="0123456789abcdef", device="cpu", precision="fp32")
    meters = Meters(state)
    assert lines(meters, "tamiyo_feed_lag") == ['tamiyo_feed_lag{stream="oona.tolaria.state"} 7.0']
    (info,) = lines(meters, "tamiyo_model_info")
    assert 'digest="0123456789ab"' in info


def test_meters_that_are_off_record_nothing_and_raise_nothing() -> None:
    meters = Meters(HubState(), ExportOptions(prometheus=False))
    meters.decided("hold", packet(source="tamiyo"), {"build": 1.0})
    meters.consumed("s", 1, "g")
    meters.close()
    assert meters.exposition() == b""


def test_an_instrument_that_is_not_in_the_table_cannot_be_recorded() -> None:
    with pytest.raises(KeyError, match=r"tamiyo\.unknown"):
        Meters(HubState()).add("tamiyo.unknown")
    with pytest.raises(KeyError):
        Meters(HubState()).record(names.DECISIONS, 1.0)
