"""The publisher never blocks or raises, keeps the order, loses nothing while its queue has room."""

from __future__ import annotations

import logging

import pytest
import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.partitions import stream_key
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint
from tamiyo_stream.upstream.connection import RedisUrlInvalid
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, free_port
from tamiyo_stream.upstream.publisher import StreamPublisher
from tests.upstream.waiting import wait_until

FLUSH_S = 20.0
KEYRING = Keyring({"k1": b"secret"})


def state(step, run_id="run"):
    return SystemStatePacket(
        run_id=run_id,
        packet_id=f"{run_id}-step-{step}",
        global_step=step,
        timestamp_ns=1,
        training_metrics={"loss": 1.0},
    )


def blueprint(version="v1"):
    return Blueprint(blueprint_id="host", blueprint_version=version, issued_at=1)


def entries(client, key=Stream.STATE, keyring=None):
    return [decode_entry(fields, keyring) for _, fields in client.xrange(key)]


def steps(client, key=Stream.STATE):
    return [entry.message.global_step for entry in entries(client, key)]


def test_messages_arrive_in_the_order_they_were_published(server, client):
    with StreamPublisher(server.url) as publisher:
        for step in range(200):
            assert publisher.publish(Stream.STATE, state(step))
        assert publisher.flush(FLUSH_S)

    assert steps(client) == list(range(200))


def test_entries_are_signed_with_the_keyring(server, client):
    with StreamPublisher(server.url, KEYRING) as publisher:
        publisher.publish(Stream.STATE, state(1))

    [(_, fields)] = client.xrange(Stream.STATE)
    assert decode_entry(fields, KEYRING).message.global_step == 1
    with pytest.raises(EntryError):
        decode_entry(fields, Keyring({"k1": b"another"}))


def test_a_run_goes_to_its_partition(server, client):
    with StreamPublisher(server.url, partitions=4) as publisher:
        for run in range(8):
            publisher.publish(Stream.STATE, state(1, run_id=f"run-{run}"))

    keys = [stream_key(Stream.STATE, partition=p, partitions=4) for p in range(4)]
    runs = {entry.message.run_id for key in keys for entry in entries(client, key)}
    assert runs == {f"run-{run}" for run in range(8)}
    assert not client.exists(Stream.STATE)


def test_a_renamed_stream_is_used(server, client):
    with StreamPublisher(server.url, stream_names={Stream.STATE: "other"}) as publisher:
        publisher.publish(Stream.STATE, state(3))

    assert steps(client, "other") == [3]


def test_nothing_is_lost_when_redis_dies_and_comes_back(server, client):
    with StreamPublisher(server.url) as publisher:
        publisher.publish(Stream.STATE, state(0))
        assert publisher.flush(FLUSH_S)
        server.stop(kill=True)
        for step in range(1, 50):
            assert publisher.publish(Stream.STATE, state(step))
        wait_until(lambda: publisher.statistics().retries > 1, "the outage was noticed")
        assert publisher.statistics().queued == 49
        server.start()
        assert publisher.flush(FLUSH_S)
        statistics = publisher.statistics()

    # The server keeps nothing on disk: what was sent before the outage is gone with it.
    assert steps(client) == list(range(1, 50))
    assert (statistics.published, statistics.dropped, statistics.queued) == (50, 0, 0)
    assert statistics.connected


def test_a_kept_message_is_sent_again_before_newer_ones_when_redis_comes_back_empty(server, client):
    with StreamPublisher(server.url) as publisher:
        publisher.publish(Stream.BLUEPRINTS, blueprint("v1"), keep_as="host")
        publisher.publish(Stream.BLUEPRINTS, blueprint("v2"), keep_as="host")
        assert publisher.flush(FLUSH_S)
        first = [entry.event_id for entry in entries(client, Stream.BLUEPRINTS)]
        server.stop(kill=True)
        publisher.publish(Stream.STATE, state(1))
        wait_until(lambda: publisher.statistics().retries, "the outage was noticed")
        server.start()
        assert publisher.flush(FLUSH_S)

    [again] = entries(client, Stream.BLUEPRINTS)
    assert again.message.blueprint_version == "v2"
    assert again.event_id == first[1]
    assert (
        client.xinfo_stream(Stream.BLUEPRINTS)["last-generated-id"]
        <= client.xinfo_stream(Stream.STATE)["last-generated-id"]
    )


def test_publishing_starts_before_redis_does():
    port = free_port()
    with StreamPublisher(f"redis://127.0.0.1:{port}/0") as publisher:
        publisher.publish(Stream.STATE, state(7))
        wait_until(lambda: publisher.statistics().retries, "the first attempt failed")
        with EmbeddedRedis(port=port):
            assert publisher.flush(FLUSH_S)
            assert publisher.statistics().published == 1


def test_a_full_queue_drops_the_oldest_state_and_counts_it():
    port = free_port()
    with StreamPublisher(f"redis://127.0.0.1:{port}/0", capacity=3) as publisher:
        publisher.publish(Stream.STATE, state(0))
        wait_until(lambda: publisher.statistics().retries, "the first message is being sent")
        for step in range(1, 6):
            assert publisher.publish(Stream.STATE, state(step))
        with EmbeddedRedis(port=port) as late, redis.Redis.from_url(late.url) as client:
            assert publisher.flush(FLUSH_S)
            assert steps(client) == [0, 3, 4, 5]
        assert publisher.statistics().dropped == 2


def test_a_full_queue_never_drops_what_is_no_state():
    publisher = StreamPublisher(f"redis://127.0.0.1:{free_port()}/0", capacity=2)
    publisher.publish(Stream.BLUEPRINTS, blueprint())
    wait_until(lambda: publisher.statistics().retries, "the first message is being sent")

    taken = [publisher.publish(Stream.BLUEPRINTS, blueprint(f"v{n}")) for n in range(4)]

    assert taken == [True, True, False, False]
    assert publisher.statistics().dropped == 2
    publisher.close(timeout_s=0)


def test_a_message_that_readers_would_refuse_is_refused_and_the_next_one_sent(server, client, caplog):
    with StreamPublisher(server.url) as publisher:
        publisher.publish(Stream.STATE, state(1, run_id="r" * 500))
        publisher.publish(Stream.STATE, state(2))
        assert publisher.flush(FLUSH_S)
        statistics = publisher.statistics()

    assert steps(client) == [2]
    assert (statistics.refused, statistics.published) == (1, 1)
    assert "refused a SystemStatePacket" in caplog.text


def test_a_wrong_password_is_explained_once_and_cured_by_the_right_one(server, client, caplog):
    client.config_set("requirepass", "right")
    wrong = server.url.replace("//", "//:wrong@")
    with StreamPublisher(wrong) as publisher:
        publisher.publish(Stream.STATE, state(1))
        wait_until(lambda: publisher.statistics().retries > 2, "it was refused three times")
        statistics = publisher.statistics()
        client.config_set("requirepass", "wrong")
        assert publisher.flush(FLUSH_S)

    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "AuthenticationError" in statistics.last_error
    assert not statistics.connected
    assert len(warnings) == 1
    assert "redis://user:password@host" in warnings[0].getMessage()
    assert steps(client) == [1]


def test_an_unusable_url_is_refused_without_showing_it():
    with pytest.raises(RedisUrlInvalid) as refusal:
        StreamPublisher("http://user:hunter2@host")

    assert "redis://" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_a_closed_publisher_drops_and_counts(server):
    publisher = StreamPublisher(server.url)
    publisher.close()
    publisher.close()

    assert publisher.publish(Stream.STATE, state(1)) is False
    assert publisher.statistics().dropped == 1


def test_closing_without_redis_says_how_much_is_unsent(caplog):
    publisher = StreamPublisher(f"redis://127.0.0.1:{free_port()}/0")
    for step in range(3):
        publisher.publish(Stream.STATE, state(step))

    publisher.close(timeout_s=0)

    assert "3 messages unsent" in caplog.text
    assert publisher.flush(0) is False
