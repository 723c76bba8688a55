"""Urgent telemetry goes to the emergency stream, and a copy where alerting reads (domain.md §5.3)."""

from __future__ import annotations

import pytest

from schemas.catalogue import Stream
from schemas.enums import HealthStatus, MessagePriority, TelemetryLevel
from tamiyo_stream.hub.priority import destinations, priority_of
from tests.hub.samples import event, health, packet


@pytest.mark.parametrize(
    ("events", "priority"),
    [
        ([], MessagePriority.NORMAL),
        ([event("loss_spike")], MessagePriority.HIGH),
        ([event("loss_spike", TelemetryLevel.INFO)], MessagePriority.NORMAL),
        ([event("bsds_hazard_high")], MessagePriority.NORMAL),
        ([event("loss_spike"), event("anything", TelemetryLevel.CRITICAL)], MessagePriority.CRITICAL),
    ],
)
def test_the_gravest_event_decides(events, priority) -> None:
    assert priority_of(events) is priority


@pytest.mark.parametrize(
    ("priority", "streams"),
    [
        ("MESSAGE_PRIORITY_NORMAL", (Stream.TELEMETRY,)),
        ("MESSAGE_PRIORITY_HIGH", (Stream.EMERGENCY, Stream.TELEMETRY)),
        ("MESSAGE_PRIORITY_CRITICAL", (Stream.EMERGENCY, Stream.TELEMETRY)),
    ],
)
def test_an_urgent_packet_goes_to_both_streams(priority, streams) -> None:
    assert destinations(packet(system_health=health(HealthStatus.HEALTHY, priority=priority))) == streams
