"""Shared fixtures: a real Redis server for the whole session, and the bus on the fake and on the real one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from fakeredis import FakeAsyncRedis
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis

# The same examples everywhere: a failure in CI is a failure here.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _no_surrounding_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TAMIYO_ variable of the developer's reaches a test."""
    for name in [name for name in os.environ if name.startswith("TAMIYO_") and name != "TAMIYO_REDIS_SERVER"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """A real server for the session."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of the real server, emptied."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(params=["fake", "real"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """An asyncio client on the fake and on the real server: the fake cannot drift."""
    if request.param == "fake":
        client: Redis = FakeAsyncRedis()
    else:
        client = Redis.from_url(request.getfixturevalue("redis_url"))
    async with client:
        yield client
