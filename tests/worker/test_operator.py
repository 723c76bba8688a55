"""The operator's commands against a running worker."""

from __future__ import annotations

import pytest
from anyio import to_thread

from schemas.enums import Override
from tamiyo_stream.operator import CommandNotFound, direct, explain_commands, show_status
from tamiyo_stream.policy.thresholds import RiskThresholds

ANY_COVERAGE = RiskThresholds(coverage_warn=0.0, coverage_critical=-1.0)


async def say(upstream, run_id: str | None, **words: Override) -> None:
    await to_thread.run_sync(lambda: direct(upstream.settings, run_id, "a drill", **words))


async def test_one_run_is_forced_into_conservative_mode_and_another_is_not(upstream, worker) -> None:
    await say(upstream, "a", conservative=Override.ON)
    async with worker(risk=ANY_COVERAGE):
        for run_id in ("a", "b"):
            await upstream.step(1, run_id=run_id)
        commands = await upstream.decided(2)
    reason = {command.run_id: command.annotations["risk_reason"] for command in commands}
    assert reason["a"] == "conservative_mode"
    assert reason["b"] != "conservative_mode"


async def test_a_network_that_is_switched_off_is_not_asked(upstream, worker) -> None:
    await say(upstream, None, inference_breaker=Override.OFF)
    async with worker(risk=ANY_COVERAGE):
        await upstream.step(1)
        (command,) = await upstream.decided(1)
    assert command.annotations["risk_reason"] == "breaker_open"


async def test_a_decision_is_explained_from_the_bus_alone(upstream, worker, capsys) -> None:
    async with worker():
        for step in (1, 2):
            await upstream.step(step)
            await upstream.decided(step)
    first, second = await upstream.commands()

    def told(command_id: str | None, last: int = 1) -> str:
        assert explain_commands(upstream.settings, command_id, last) == 0
        return capsys.readouterr().out

    by_id = await to_thread.run_sync(told, first.command_id)
    assert (first.command_id in by_id, second.command_id in by_id) == (True, False)
    assert f"reason: {first.annotations['risk_reason']}" in by_id
    newest = await to_thread.run_sync(told, None, 2)
    assert newest.index(first.command_id) < newest.index(second.command_id)
    with pytest.raises(CommandNotFound, match="no-such-id"):
        await to_thread.run_sync(explain_commands, upstream.settings, "no-such-id", 1)


async def test_the_status_shows_the_runs_from_the_bus_alone(upstream, worker, capsys) -> None:
    async with worker():
        await upstream.step(1, run_id="r7")
        await upstream.decided(1)

    def told() -> str:
        assert show_status(upstream.settings, watch=False) == 0
        return capsys.readouterr().out

    shown = await to_thread.run_sync(told)
    assert "r7" in shown
    assert "DEGRADED" in shown.upper() or "CRITICAL" in shown.upper()
