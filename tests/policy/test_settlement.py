"""What a run keeps of a decision, and the reports that go with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.enums import FieldReportOutcome
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.facts import Guard
from tamiyo_stream.policy.settlement import Settlement, settle
from tamiyo_stream.policy.windows import WindowRules
from tamiyo_stream.runs.snapshot import decode_snapshot, encode_snapshot
from tamiyo_stream.runs.state import RunState
from tests.policy.samples import STAMP, graft_facts, grafting

RULES = WindowRules(target_epochs=1)


def take(run: RunState, number: int, *, epoch: int, delta: float = -0.01, **given) -> Settlement:
    facts = graft_facts(loss_delta=delta, packet={"current_epoch": epoch, "global_step": number}, **given)
    stamp = replace(STAMP, command_id=f"c{number}", issued_at=number)
    return settle(run, decide(facts, grafting(), stamp, guard=Guard.of(run)), facts, stamp, RULES)


@pytest.fixture
def run() -> RunState:
    return RunState(run_id="r")


def test_every_decision_has_its_report_and_every_graft_its_window(run) -> None:
    settled = take(run, 1, epoch=0)
    assert [report.command_id for report in settled.reports] == ["c1"]
    assert list(run.windows) == ["c1"]
    assert settled.events == ()


def test_the_deciding_step_is_no_part_of_what_its_command_led_to(run) -> None:
    take(run, 1, epoch=0, delta=-9.0)
    take(run, 2, epoch=0, delta=-0.25)
    assert run.windows["c1"].loss_delta_sum == -0.25
    assert run.windows["c2"].steps == 0


def test_a_window_that_closes_is_reported_beside_the_decision_and_announced(run) -> None:
    take(run, 1, epoch=0)
    take(run, 2, epoch=0, delta=-0.25)
    settled = take(run, 3, epoch=1)
    assert [report.command_id for report in settled.reports] == ["c3", "c1", "c2"]
    assert settled.reports[1].outcome is FieldReportOutcome.SUCCESS
    assert [event.attributes["command_id"] for event in settled.events] == ["c1", "c2"]
    assert list(run.windows) == ["c3"]


def test_a_critical_step_marks_the_commands_before_it(run) -> None:
    take(run, 1, epoch=0)
    take(run, 2, epoch=0, coverage_average=0.0)
    assert run.windows["c1"].had_critical


def test_safety_state_is_kept_with_the_run_and_survives_its_snapshot(run) -> None:
    take(run, 1, epoch=0, delta=0.5)
    assert run.conservative.reason == "loss_spike"
    restored = decode_snapshot(encode_snapshot(run))
    settled = take(restored, 2, epoch=0)
    assert settled.reports[0].outcome is FieldReportOutcome.NEUTRAL
    assert restored.conservative.clean_steps == 1


def test_a_step_settled_again_after_a_failed_commit_writes_the_same_reports(run) -> None:
    take(run, 1, epoch=0)
    before = encode_snapshot(run)
    first = take(run, 2, epoch=1)
    again = take(decode_snapshot(before), 2, epoch=1)
    assert [r.report_id for r in first.reports] == [r.report_id for r in again.reports]
    assert len({r.report_id for r in first.reports}) == 2
