"""Liveness means progress."""

from __future__ import annotations

from tamiyo_stream.hub.progress import Progress


def started() -> Progress:
    return Progress(step_limit_s=10.0, started=True)


def test_a_worker_whose_stages_tick_is_live_and_ready() -> None:
    progress = started()
    stage = progress.stage("claim", 5.0, 100.0)
    stage.tick(108.0)
    assert progress.live(112.0).ok
    assert progress.readiness(112.0).ok


def test_a_stage_that_stops_ticking_is_named() -> None:
    progress = started()
    progress.stage("claim", 5.0, 100.0)
    verdict = progress.live(105.5)
    assert not verdict.ok
    assert verdict.reasons == ("stage claim has not ticked for 5.5 s (limit 5 s)",)
    assert not progress.readiness(105.5).ok


def test_a_stage_that_ended_is_no_longer_watched() -> None:
    progress = started()
    progress.stage("claim", 5.0, 100.0)
    progress.retire("claim")
    assert progress.live(200.0).ok


def test_a_step_in_flight_for_too_long_is_no_progress_until_it_is_settled() -> None:
    progress = started()
    progress.claimed("1-0", 100.0)
    progress.claimed("1-0", 109.0)  # handed out again: the first time counts
    assert progress.in_flight == 1
    verdict = progress.live(111.0)
    assert verdict.reasons == ("a step is in flight for 11.0 s (limit 10 s)",)
    progress.settled("1-0")
    assert progress.live(111.0).ok
    assert progress.oldest_s(111.0) == 0.0


def test_a_worker_without_its_lease_is_live_but_not_ready() -> None:
    progress = started()
    progress.waits_for("lease 0", "another worker holds it")
    assert progress.live(1.0).ok
    assert progress.readiness(1.0).reasons == ("lease 0: another worker holds it",)
    progress.ready("lease 0")
    assert progress.readiness(1.0).ok


def test_a_worker_that_is_starting_is_not_ready() -> None:
    progress = Progress()
    assert progress.startup().reasons == progress.readiness(0.0).reasons == ("starting",)
    progress.started = True
    assert progress.startup().ok
