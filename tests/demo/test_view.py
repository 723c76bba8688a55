"""What the demo shows of a run."""

from __future__ import annotations

import io

from rich.console import Console

from schemas.enums import CommandType
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.demo.training import Arrival, Progress
from tamiyo_stream.demo.view import LiveView, PlainView, sparkline


def arrival(step: int) -> Arrival:
    command = AdaptationCommand(
        command_id=f"c{step}",
        command_type=CommandType.PAUSE,
        execution_deadline_ms=1000,
        issued_at=1,
        run_id="r",
        packet_id=f"p{step}",
        global_step=step,
        annotations={
            "policy_action_name": "hold",
            "risk_reason": "policy",
            "policy_risk_score": "0.250000",
            "feature_coverage": "0.775",
            "decision_latency_ms": "12.500",
            "why": '{"layers":{"blocks.0.norm":0.6}}',
        },
    )
    return Arrival(command, "no change")


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=140, height=40, color_system=None)


def test_the_live_view_shows_progress_loss_decisions_reasons_latency_and_coverage() -> None:
    console = terminal()
    view = LiveView(console, 10)
    for step in (1, 2):
        seeds = {"seed-0": "BLENDING", "seed-1": "DORMANT"}
        view.show(Progress(step, 3.0 / step, 1e-3, 50.0, (arrival(step),), seeds))
    view._live.refresh()
    view.close()
    shown = console.file.getvalue()
    for expected in (
        "seed-0 ◑ blending",
        "seed-1 ○ dormant",
        "2/10",
        "1.500",
        "hold",
        "policy",
        "0.250",
        "blocks.0.norm",
        "12 ms",
        "0.775",
        "█",
    ):
        assert expected in shown


def test_the_plain_view_prints_the_first_step_and_every_fiftieth() -> None:
    console = terminal()
    view = PlainView(console, 100)
    for step in range(1, 101):
        view.show(Progress(step, 2.0, 1e-3, 50.0, (arrival(step),)))
    view.show(Progress(100, None, 1e-3, 0.0, ()))  # waiting for the last commands
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1/100", "50/100", "100/100"]


def test_a_sparkline_spans_its_own_extremes() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""
