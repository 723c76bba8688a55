"""An outage waits longer each time, is reported once, and every way of failing comes with advice."""

from __future__ import annotations

import logging

import pytest
import redis

from tamiyo_stream.upstream.connection import LONGEST_DELAY_S, Outage, advice_for


def test_waits_grow_up_to_the_longest_and_start_over_after_a_success():
    outage = Outage("test")
    waits = [outage.failed(redis.ConnectionError("gone")) for _ in range(12)]
    outage.succeeded()
    fresh = outage.failed(redis.ConnectionError("gone"))

    assert waits[0] <= 0.05
    assert all(LONGEST_DELAY_S / 2 <= wait <= LONGEST_DELAY_S for wait in waits[-4:])
    assert fresh <= 0.05


def test_one_outage_is_one_warning_and_the_next_one_another(caplog):
    caplog.set_level(logging.INFO, "tamiyo.probe")
    outage = Outage("test")
    for _ in range(3):
        outage.failed(redis.ConnectionError("gone"))
    outage.succeeded()
    outage.failed(redis.ConnectionError("gone"))

    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO, logging.WARNING]


def test_a_wrong_password_is_reported_once_in_a_life(caplog):
    outage = Outage("test")
    for _ in range(2):
        outage.failed(redis.AuthenticationError("no"))
        outage.succeeded()

    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (redis.AuthenticationError("x"), "redis://user:password@host"),
        (redis.exceptions.NoPermissionError("x"), "+xadd"),
        (redis.ReadOnlyError("x"), "primary"),
        (redis.exceptions.OutOfMemoryError("x"), "maxmemory"),
        (redis.TimeoutError("x"), "reachable"),
        (redis.ConnectionError("x"), "Redis runs"),
        (OSError("x"), "host name"),
        (redis.ResponseError("x"), ""),
    ],
)
def test_each_failure_names_its_own_next_step(error, advice):
    assert advice in advice_for(error)
    assert bool(advice) == bool(advice_for(error))


def test_counters_tell_the_state():
    outage = Outage("test")
    outage.failed(redis.ConnectionError("gone"))

    assert (outage.failures, outage.connected, outage.last_error) == (1, False, "ConnectionError: gone")
    outage.succeeded()
    assert (outage.failures, outage.connected) == (1, True)
