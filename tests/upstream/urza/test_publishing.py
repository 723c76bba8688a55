"""The catalogue on the bus: every kernel arrives in order, and again where Redis comes back empty."""

from __future__ import annotations

import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from tamiyo_stream.upstream.publisher import StreamPublisher
from tamiyo_stream.upstream.urza.artifact import publish_catalogue
from tamiyo_stream.upstream.urza.catalogue import KERNELS

FLUSH_S = 20.0
IDS = [kernel.blueprint_id for kernel in KERNELS]


class Answering:
    """A publisher that gives one answer: taken, or dropped."""

    def __init__(self, taken):
        self.taken = taken

    def publish(self, *_, **__):
        return self.taken


def ids_on(client):
    return [decode_entry(fields, None).message.blueprint_id for _, fields in client.xrange(Stream.BLUEPRINTS)]


def test_the_whole_catalogue_arrives_in_order(redis_url):
    with StreamPublisher(redis_url) as publisher:
        published = publish_catalogue(publisher, 16)
        assert publisher.flush(FLUSH_S)

    assert [blueprint.blueprint_id for blueprint in published] == IDS
    with redis.Redis.from_url(redis_url) as client:
        assert ids_on(client) == IDS


def test_kernels_can_be_chosen_and_dated():
    [blueprint] = publish_catalogue(Answering(taken=True), 16, KERNELS[2:3], issued_at=5)

    assert (blueprint.blueprint_id, blueprint.issued_at) == ("BP003", 5)


def test_what_the_publisher_drops_does_not_count_as_published():
    assert publish_catalogue(Answering(taken=False), 16, KERNELS[:2]) == ()


def test_the_catalogue_is_sent_again_when_redis_comes_back_empty(server, client):
    with StreamPublisher(server.url) as publisher:
        publish_catalogue(publisher, 16, KERNELS[:3])
        assert publisher.flush(FLUSH_S)
        server.stop(kill=True)
        publish_catalogue(publisher, 16, KERNELS[3:4])
        server.start()
        assert publisher.flush(FLUSH_S)

    assert ids_on(client) == IDS[:4]
