"""Safety sheets on the bus: all of them arrive, and again where Redis comes back empty."""

from __future__ import annotations

import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from tamiyo_stream.upstream.publisher import StreamPublisher
from tamiyo_stream.upstream.urabrask.crucible import evaluate_kernel, publish_sheets
from tamiyo_stream.upstream.urza.catalogue import KERNELS

FLUSH_S = 20.0


def read(client):
    return [decode_entry(fields, None).message for _, fields in client.xrange(Stream.SAFETY)]


def test_sheets_and_failures_arrive_in_order(redis_url):
    sheets = [evaluate_kernel(kernel, 8) for kernel in (KERNELS[0], KERNELS[-1])]
    failure = BlueprintSafetyFailed(blueprint_id="BP002", reason="raised", issued_at=1)
    with StreamPublisher(redis_url) as publisher:
        assert publish_sheets(publisher, [*sheets, failure]) == 3
        assert publisher.flush(FLUSH_S)

    with redis.Redis.from_url(redis_url) as client:
        received = read(client)
    assert [message.blueprint_id for message in received] == ["BP001", "BP048", "BP002"]
    assert [type(message) for message in received] == [BlueprintSafetySheet] * 2 + [BlueprintSafetyFailed]


def test_a_sheet_stays_in_force_over_a_failure_when_redis_comes_back_empty(server, client):
    sheet = evaluate_kernel(KERNELS[0], 8)
    failure = BlueprintSafetyFailed(blueprint_id="BP001", reason="raised", issued_at=sheet.issued_at + 1)
    with StreamPublisher(server.url) as publisher:
        publish_sheets(publisher, [sheet, failure])
        assert publisher.flush(FLUSH_S)
        server.stop(kill=True)
        publish_sheets(publisher, [evaluate_kernel(KERNELS[1], 8)])
        server.start()
        assert publisher.flush(FLUSH_S)

    assert [(type(message), message.blueprint_id) for message in read(client)] == [
        (BlueprintSafetySheet, "BP001"),
        (BlueprintSafetyFailed, "BP001"),
        (BlueprintSafetySheet, "BP002"),
    ]


def test_what_the_publisher_drops_is_not_counted():
    class Full:
        def publish(self, *_, **__):
            return False

    assert publish_sheets(Full(), [evaluate_kernel(KERNELS[0], 8)]) == 0
