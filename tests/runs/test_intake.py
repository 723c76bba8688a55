"""Order of a run's messages: a step decides at most once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from schemas.kasmina import SeedExport, SeedState
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.runs.intake import (
    HISTORY_STEPS,
    RECENT_IDS,
    Verdict,
    loss_delta,
    record_latency,
    take_seeds,
    take_state,
)
from tamiyo_stream.runs.state import RunState


def packet(step: int, **fields) -> SystemStatePacket:
    return SystemStatePacket(run_id="r", packet_id=f"p{step}", global_step=step, timestamp_ns=1, **fields)


def export(timestamp_ns: int, *seed_ids: str) -> SeedExport:
    return SeedExport(run_id="r", timestamp_ns=timestamp_ns, seeds=[SeedState(seed_id=s) for s in seed_ids])


def test_a_newer_step_moves_the_run_on() -> None:
    run = RunState(run_id="r")
    assert take_state(run, "e1", packet(3, training_loss=1.5, current_epoch=2)) is Verdict.ACCEPTED
    assert (run.last_step, run.last_packet_id, run.last_loss, run.last_epoch) == (3, "p3", 1.5, 2)
    assert run.history[-1].loss == 1.5


def test_an_entry_delivered_twice_is_a_duplicate() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(1))
    assert take_state(run, "e1", packet(1)) is Verdict.DUPLICATE
    assert run.counters["duplicate"] == 1


def test_a_step_published_twice_under_another_id_is_stale() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(1))
    assert take_state(run, "e2", packet(1)) is Verdict.STALE
    assert run.counters["stale"] == 1


def test_an_older_step_is_stale_and_changes_nothing_but_the_count() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(5, training_loss=1.0))
    assert take_state(run, "e2", packet(4, training_loss=9.0)) is Verdict.STALE
    assert (run.last_step, run.last_loss, len(run.history)) == (5, 1.0, 1)


def test_skipped_steps_are_counted_as_a_gap() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(1))
    take_state(run, "e2", packet(5))
    assert run.counters["gap"] == 3


def test_a_run_that_starts_above_zero_has_no_gap() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(1000))
    assert run.counters.get("gap", 0) == 0


def test_a_loss_that_is_not_a_number_leaves_the_last_known_loss() -> None:
    run = RunState(run_id="r")
    take_state(run, "e1", packet(1, training_loss=2.0))
    take_state(run, "e2", packet(2, training_loss=math.nan))
    assert run.last_loss == 2.0
    assert run.history[-1].loss is None


def test_the_loss_delta_needs_two_known_losses() -> None:
    run = RunState(run_id="r")
    assert loss_delta(run, packet(1, training_loss=2.0)) is None
    take_state(run, "e1", packet(1, training_loss=2.0))
    assert loss_delta(run, packet(2, training_loss=1.5)) == -0.5
    assert loss_delta(run, packet(2)) is None


def test_seeds_are_replaced_by_a_newer_export_only() -> None:
    run = RunState(run_id="r")
    assert take_seeds(run, "e1", export(10, "a", "b")) is Verdict.ACCEPTED
    assert take_seeds(run, "e2", export(9, "c")) is Verdict.STALE
    assert list(run.seeds) == ["a", "b"]
    assert take_seeds(run, "e3", export(11, "b")) is Verdict.ACCEPTED
    assert list(run.seeds) == ["b"]
    assert take_seeds(run, "e3", export(12, "z")) is Verdict.DUPLICATE


@given(st.lists(st.integers(min_value=0, max_value=400), max_size=600))
def test_whatever_arrives_accepted_steps_rise_and_memory_stays_bounded(steps: list[int]) -> None:
    run = RunState(run_id="r")
    accepted = [s for i, s in enumerate(steps) if take_state(run, f"e{i}", packet(s)) is Verdict.ACCEPTED]
    assert accepted == sorted(set(accepted))
    assert len(run.recent_ids) <= RECENT_IDS
    assert len(run.history) <= HISTORY_STEPS
    assert len(accepted) + run.counters.get("stale", 0) == len(steps)


def test_a_decisions_latency_is_noted_and_a_late_one_is_counted() -> None:
    run = RunState(run_id="r")
    for step, latency_ms in ((1, 45.0), (2, 45.1)):
        take_state(run, f"e{step}", packet(step))
        record_latency(run, latency_ms, deadline_ms=45.0)
    assert [record.decision_latency_ms for record in run.history] == [45.0, 45.1]
    assert run.counters["sla_breaches"] == 1
