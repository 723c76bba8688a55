"""The probe and a real Redis that is away, refuses it, or dies: training goes on, nothing is lost."""

from __future__ import annotations

import logging

import pytest
import redis
import torch

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.signing import Keyring
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, free_port
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.tolaria.host_models import Mlp
from tests.upstream.waiting import wait_until

KEYRING = Keyring({"k1": b"secret"})


class Training:
    """A loop that trains an Mlp under a probe."""

    def __init__(self, redis_url, **settings):
        self.model = Mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.probe = TolariaProbe.attach(self.model, self.optimizer, run_id="run", redis_url=redis_url, **settings)

    def run(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.ones(2, 8)).square().sum()
            loss.backward()
            self.optimizer.step()
            self.probe.step(loss=loss, samples=2)

    @property
    def published(self):
        return self.probe.statistics().publisher


def messages(url, stream, keyring=None):
    with redis.Redis.from_url(url) as client:
        return [decode_entry(fields, keyring, stream=stream).message for _, fields in client.xrange(stream)]


def steps_of(url):
    """Return the steps in the stream without the duplicates that a lost reply may leave."""
    return list(dict.fromkeys(state.global_step for state in messages(url, Stream.STATE)))


def test_a_run_is_published_signed_blueprint_first(server):
    training = Training(server.url, keyring=KEYRING)
    training.run(3)
    training.probe.close(20.0)

    [blueprint] = messages(server.url, Stream.BLUEPRINTS, KEYRING)
    states = messages(server.url, Stream.STATE, KEYRING)
    assert [state.global_step for state in states] == [0, 1, 2]
    assert {state.blueprint_version for state in states} == {blueprint.blueprint_version}
    with redis.Redis.from_url(server.url) as client:
        [(blueprint_entry, _)] = client.xrange(Stream.BLUEPRINTS)
        first_state_entry = client.xrange(Stream.STATE)[0][0]
    assert blueprint_entry <= first_state_entry


def test_without_redis_training_goes_on_and_everything_arrives_later():
    port = free_port()
    training = Training(f"redis://127.0.0.1:{port}/0")
    training.run(5)
    wait_until(lambda: training.published.retries > 0, "the publisher has tried")
    assert (training.published.connected, training.published.queued) == (False, 6)
    assert "ConnectionError" in training.published.last_error

    with EmbeddedRedis(port=port) as server:
        training.run(2)
        training.probe.close(20.0)
        assert steps_of(server.url) == list(range(7))
        assert len(messages(server.url, Stream.BLUEPRINTS)) == 1
    assert training.published.dropped == 0


def test_a_redis_that_dies_in_mid_run_and_comes_back_empty_loses_no_later_step(tmp_path):
    with EmbeddedRedis(directory=tmp_path) as server:
        training = Training(server.url)
        training.run(4)
        wait_until(lambda: training.published.queued == 0, "everything is sent")
        server.stop(kill=True)
        training.run(4)
        server.start()
        training.run(4)
        training.probe.close(20.0)

        assert steps_of(server.url) == list(range(4, 12))
        # The restarted server forgot the blueprint that these states refer to.
        assert {b.blueprint_version for b in messages(server.url, Stream.BLUEPRINTS)} == {
            training.probe.statistics().blueprint_version
        }


def test_a_persistent_redis_that_dies_in_mid_run_has_every_step_afterwards(tmp_path):
    with EmbeddedRedis("--appendonly", "yes", "--appendfsync", "always", directory=tmp_path) as server:
        training = Training(server.url)
        for _ in range(3):
            training.run(3)
            server.stop(kill=True)
            training.run(2)
            server.start()
        training.probe.close(20.0)

        assert steps_of(server.url) == list(range(15))
    assert training.published.dropped == 0


@pytest.mark.parametrize("credentials", ["", ":wrong@"])
def test_a_wrong_password_is_explained_once_and_training_goes_on(credentials, caplog):
    with EmbeddedRedis() as server, caplog.at_level(logging.WARNING, logger="tamiyo.probe"):
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "right")
        training = Training(server.url.replace("redis://", f"redis://{credentials}"))
        training.run(3)
        wait_until(lambda: training.published.retries > 2, "the publisher has tried again")
        training.probe.close(0.0)

    explained = [r.getMessage() for r in caplog.records if "redis://user:password@" in r.getMessage()]
    assert len(explained) == 1
    assert "wrong@" not in caplog.text
    assert training.probe.statistics().errors == {}
