"""Risk, deadlines, breakers, reports: what the worker does when something is wrong, and that it says so."""

from __future__ import annotations

import time

import pytest

from schemas.catalogue import Stream
from schemas.enums import CommandType, EmergencyLevel, FieldReportOutcome, MessagePriority, TelemetryLevel
from schemas.tamiyo import AdaptationCommand, FieldReport
from schemas.telemetry import EmergencySignal, TelemetryPacket
from tamiyo_stream.inference.output import NonFiniteOutput
from tamiyo_stream.policy.thresholds import RiskThresholds

#: The packets of these tests bring next to nothing; how little is no matter here.
ANY_COVERAGE = RiskThresholds(coverage_warn=0.0, coverage_critical=-1.0)


async def reports_of(upstream) -> list[FieldReport]:
    return [e.message for e in await upstream.entries(Stream.REPORTS) if isinstance(e.message, FieldReport)]


async def urgent(upstream) -> list[TelemetryPacket]:
    entries = await upstream.entries(Stream.EMERGENCY)
    return [entry.message for entry in entries if isinstance(entry.message, TelemetryPacket)]


def reasons(commands: list[AdaptationCommand]) -> list[str]:
    return [command.annotations["risk_reason"] for command in commands]


def events_of(packet: TelemetryPacket) -> dict[str, TelemetryLevel]:
    return {event.description: event.level for event in packet.events}


async def test_every_decision_has_one_report_of_the_same_commit(upstream, worker) -> None:
    async with worker():
        for step in range(1, 5):
            await upstream.step(step)
            await upstream.decided(step)
    reports, commands = await reports_of(upstream), await upstream.commands()
    assert [report.command_id for report in reports] == [command.command_id for command in commands]
    assert len({report.report_id for report in reports}) == len(reports)
    assert {report.training_run_id for report in reports} == {"run"}


async def test_a_late_network_is_a_pause_without_target_and_urgent(upstream, worker, engine) -> None:
    class Slow:
        def __getattr__(self, name):
            return getattr(engine, name)

        def infer(self, graphs):
            time.sleep(0.2)
            return engine.infer(graphs)

    async with worker(engine=Slow(), decision_deadline_ms=50, risk=ANY_COVERAGE):
        await upstream.step(1)
        (command,) = await upstream.decided(1)
    assert (command.command_type, command.target_seed_id) == (CommandType.PAUSE, "")
    assert reasons([command]) == ["timeout_inference"]
    (packet,) = await urgent(upstream)
    assert packet.priority is MessagePriority.HIGH
    assert packet.packet_id in {copy.packet_id for copy in await upstream.telemetry()}
    (report,) = await reports_of(upstream)
    assert report.outcome is FieldReportOutcome.NEUTRAL
    assert "timeout" in report.notes


async def test_failures_in_a_row_open_the_breaker_and_the_network_is_not_asked(upstream, worker, engine) -> None:
    asked = []

    class Broken:
        def __getattr__(self, name):
            return getattr(engine, name)

        def infer(self, graphs):
            asked.append(len(graphs))
            return [NonFiniteOutput(graph.run_id, "policy_logits") for graph in graphs]

    async with worker(engine=Broken()):
        for step in range(1, 6):
            await upstream.step(step)
            await upstream.decided(step)
    assert reasons(await upstream.commands()) == ["non_finite_output"] * 3 + ["breaker_open"] * 2
    assert len(asked) == 3
    opened = [events_of(packet) for packet in await upstream.telemetry()][2]
    assert opened["breaker_event"] is TelemetryLevel.CRITICAL


async def test_an_open_breaker_outlives_the_worker(upstream, worker, engine) -> None:
    class Broken:
        def __getattr__(self, name):
            return getattr(engine, name)

        def infer(self, graphs):
            return [NonFiniteOutput(graph.run_id, "policy_logits") for graph in graphs]

    async with worker(worker_id="w1", engine=Broken()):
        for step in range(1, 4):
            await upstream.step(step)
            await upstream.decided(step)
    async with worker(worker_id="w2"):
        await upstream.step(4)
        await upstream.decided(4)
    assert reasons(await upstream.commands())[-1] == "breaker_open"


async def test_a_loss_spike_pauses_the_run_that_has_it_and_no_other(upstream, worker) -> None:
    async with worker():
        for step, loss in enumerate((1.0, 1.0, 3.0), 1):
            await upstream.step(step, run_id="a", training_loss=loss)
            await upstream.step(step, run_id="b", training_loss=1.0)
            await upstream.decided(2 * step)
    last = {c.run_id: c for c in await upstream.commands() if c.global_step == 3}
    assert reasons([last["a"]]) == ["loss_spike"]
    assert reasons([last["b"]]) != ["loss_spike"]


@pytest.mark.parametrize("run_id", ["run", None], ids=["this run", "all runs"])
async def test_an_emergency_signal_puts_the_run_into_conservative_mode(upstream, worker, run_id) -> None:
    signal = EmergencySignal(
        level=EmergencyLevel.CONSERVATIVE, reason="r", origin="tolaria", triggered_at=1, run_id=run_id
    )
    await upstream.publish(Stream.EMERGENCY, signal)
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
    (packet,) = await upstream.telemetry()
    assert "conservative_entered" in events_of(packet)
    assert packet.system_health is not None
    assert packet.system_health.indicators["mode"] == "1"


async def test_a_worker_does_not_take_its_own_urgent_telemetry_for_input(upstream, worker) -> None:
    async with worker():
        for step, loss in enumerate((1.0, 3.0, 3.0), 1):
            await upstream.step(step, training_loss=loss)
            await upstream.decided(step)
    assert await urgent(upstream)
    assert await upstream.dead_letters() == []


async def test_a_state_older_than_its_limit_is_said(upstream, worker) -> None:
    async with worker(risk=ANY_COVERAGE):
        await upstream.step(1, timestamp_ns=time.time_ns() - 120 * 10**9)
        (command,) = await upstream.decided(1)
    assert reasons([command]) == ["state_old"]
