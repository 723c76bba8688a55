"""Telemetry of domain.md §2.14: per seed and for all, measured values, a life in events, urgent ones at once."""

from __future__ import annotations

from schemas.enums import MessagePriority, TelemetryLevel
from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.seed import EVENT_CAPACITY
from tests.upstream.kasmina.gardens import Garden


def metrics(packet):
    return {point.name: point.value for point in packet.metrics}


def newest(garden, seed_id="s1"):
    return [packet for packet in garden.packets if packet.packet_id.startswith(f"kasmina-seed-{seed_id}-")][-1]


def test_each_seed_and_the_host_as_a_whole_report_every_n_steps():
    garden = Garden(telemetry_every=4).train(9)

    assert [packet.packet_id for packet in garden.packets] == [
        f"kasmina-{what}-{step}" for step in (1, 5, 9) for what in ("seed-s1", "seed-s2", "global-run")
    ]
    assert {packet.source_subsystem for packet in garden.packets} == {"kasmina"}
    assert {packet.run_id for packet in garden.packets} == {"run"}


def test_a_dormant_seed_reports_no_kernel():
    assert metrics(newest(Garden().train())) == {
        "kasmina.seed.stage": 1.0,
        "kasmina.seed.alpha": 0.0,
        "kasmina.seed.kernel_attached": 0.0,
        "kasmina.seed.fallback_used": 0.0,
    }


def test_a_blending_seed_reports_alpha_its_steps_latency_and_gradient():
    garden = Garden(telemetry_every=1).germinated().until(Stage.BLENDING).train(3)
    values = metrics(newest(garden))

    assert values["kasmina.seed.stage"] == 4.0
    assert 0 < values["kasmina.seed.alpha"] < 1
    assert values["kasmina.seed.alpha_steps"] == 3.0
    assert values["kasmina.seed.last_kernel_latency_ms"] > 0
    assert values["kasmina.seed.kernel_latency_ms"] > 0
    assert values["kasmina.seed.isolation.seed_norm"] > 0
    assert {point.attributes["seed_id"] for point in newest(garden).metrics} == {"s1"}


def test_active_seeds_are_counted():
    garden = Garden(telemetry_every=1).germinated().train()

    assert metrics(garden.packets[-1]) == {"kasmina.seeds.active": 1.0}


def test_a_life_is_told_in_events():
    garden = Garden(telemetry_every=1).germinated().until(Stage.FOSSILIZED)

    moves = [(event.attributes["from"], event.attributes["to"]) for event in garden.events("seed_stage")]
    assert moves[0] == ("UNKNOWN", "DORMANT")
    assert moves[-6:] == [
        ("DORMANT", "GERMINATED"),
        ("GERMINATED", "TRAINING"),
        ("TRAINING", "BLENDING"),
        ("BLENDING", "SHADOWING"),
        ("SHADOWING", "PROBATIONARY"),
        ("PROBATIONARY", "FOSSILIZED"),
    ]
    assert [event.attributes["gate"] for event in garden.events("gate_event")] == [
        "G0_SANITY",
        "G1_GRADIENT_HEALTH",
        "G2_STABILITY",
        "G3_INTERFACE",
        "G4_SYSTEM_IMPACT",
    ]
    assert [event.attributes["mode"] for event in garden.events("blend_config")] == ["CONVEX"]


def test_pause_resume_and_cull_are_told():
    garden = Garden(telemetry_every=1).germinated().train(3)
    garden.host.pause("s1")
    garden.host.resume("s1")
    garden.host.cull("s1", "unwanted")
    garden.train()

    assert garden.events("seed_paused")
    assert garden.events("seed_resumed")
    assert garden.events("seed_operation")[-1].attributes == {"operation": "CULL", "reason": "unwanted"}
    assert garden.events("seed_stage")[-1].attributes["reason"] == "unwanted"


def test_an_ordinary_packet_is_healthy_and_of_normal_priority():
    packet = newest(Garden().train())

    assert packet.level is TelemetryLevel.INFO
    assert packet.priority is MessagePriority.NORMAL
    assert packet.system_health.indicators["seed_id"] == "s1"
    assert packet.system_health.indicators["stage"] == "DORMANT"


def test_events_leave_once_and_too_many_are_counted():
    garden = Garden(telemetry_every=10_000).germinated().train(3)
    for _ in range(EVENT_CAPACITY):
        garden.host.pause("s1")
        garden.host.resume("s1")
    garden.host.cull("s1")
    seed = garden.host._bed.seed("s1")
    events = seed.take_events()

    assert len(events) == EVENT_CAPACITY + 1
    assert events[-1].code == "seed_queue_dropped"
    assert int(events[-1].attributes["dropped"]) > EVENT_CAPACITY
    assert seed.take_events() == []
