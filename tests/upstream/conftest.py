"""A real Redis server, and messages to send through it."""

from __future__ import annotations

import pytest
import redis

from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis


@pytest.fixture
def server():
    with EmbeddedRedis() as running:
        yield running


@pytest.fixture
def client(server):
    connection = redis.Redis.from_url(server.url)
    yield connection
    connection.close()
