"""Telemetry: the priority travels as a health indicator, because Leyline has no field for it."""

from __future__ import annotations

import pytest

from schemas.enums import MessagePriority
from schemas.telemetry import SystemHealth, TelemetryPacket


def packet(indicators: dict[str, str] | None) -> TelemetryPacket:
    health = None if indicators is None else SystemHealth(indicators=indicators)
    return TelemetryPacket(packet_id="p", timestamp=1, source_subsystem="kasmina", system_health=health)


@pytest.mark.parametrize("prefix", ["MESSAGE_PRIORITY_", ""])
@pytest.mark.parametrize("priority", MessagePriority)
def test_the_priority_is_read_from_its_name(priority: MessagePriority, prefix: str):
    assert packet({"priority": prefix + priority.name}).priority is priority


@pytest.mark.parametrize(
    "indicators", [None, {}, {"priority": ""}, {"priority": "EMERGENCY"}, {"priority": "high"}]
)
def test_a_packet_without_a_known_priority_is_normal(indicators: dict[str, str] | None):
    assert packet(indicators).priority is MessagePriority.NORMAL
