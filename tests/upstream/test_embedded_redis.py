"""The embedded server: real, on loopback, and gone afterwards."""

from __future__ import annotations

import socket

import pytest
import redis

from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, RedisServerUnavailable, find_redis_server


def test_it_answers_inside_the_block_and_is_gone_after_it():
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.info("server")["process_id"] == server.pid
        directory = server.directory
    assert not directory.exists()
    with redis.Redis.from_url(server.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_it_listens_on_loopback_only(server):
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_a_server_with_a_password_is_ready_when_it_asks_for_it():
    with (
        EmbeddedRedis("--requirepass", "secret") as server,
        redis.Redis.from_url(server.url, password="secret") as client,
    ):
        assert client.ping()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedRedis(port=taken.getsockname()[1])
        with pytest.raises(RedisServerUnavailable, match="did not answer"):
            server.start()
    assert not server.directory.exists()


def test_a_named_binary_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("TAMIYO_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(RedisServerUnavailable, match="/nowhere/redis-server"):
        find_redis_server()
