"""While Redis is away nobody can make progress: the worker stays live and says that it is not ready."""

from __future__ import annotations

from tamiyo_stream.hub.progress import Progress


def test_an_outage_fails_readiness_and_not_liveness() -> None:
    progress = Progress(step_limit_s=5.0, started=True)
    progress.stage("claim", 5.0, now=0.0)
    progress.claimed("entry", now=0.0)
    progress.bus_away("connection refused")
    assert progress.live(100.0).ok
    readiness = progress.readiness(100.0)
    assert not readiness.ok
    assert "connection refused" in readiness.reasons[0]


def test_after_an_outage_every_clock_starts_anew() -> None:
    progress = Progress(step_limit_s=5.0, started=True)
    progress.stage("claim", 5.0, now=0.0)
    progress.claimed("entry", now=0.0)
    progress.bus_away("connection refused")
    progress.bus_back(100.0)
    assert progress.readiness(104.0).ok
    assert not progress.live(106.0).ok


def test_a_bus_that_was_never_away_changes_nothing() -> None:
    progress = Progress(step_limit_s=5.0, started=True)
    progress.stage("claim", 5.0, now=0.0)
    progress.bus_back(100.0)
    assert not progress.live(100.0).ok
