"""The inbox hands over each verified command of its run once, and survives outages. On a real Redis."""

from __future__ import annotations

import time

import pytest
import redis

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.enums import CommandType
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.connection import RedisUrlInvalid
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, free_port
from tests.upstream.waiting import wait_until

KEYRING = Keyring({"k1": b"secret"})


def pause(number, run_id="run"):
    return AdaptationCommand(
        command_id=f"c-{number}",
        command_type=CommandType.PAUSE,
        execution_deadline_ms=45,
        issued_at=1,
        run_id=run_id,
        packet_id=f"{run_id}-step-{number}",
        global_step=number,
    )


def send(client, number, run_id="run", keyring=None):
    return client.xadd(Stream.COMMANDS, encode_entry(pause(number, run_id), keyring)).decode()


def received(inbox, count):
    """Return the next ``count`` commands, as soon as all of them arrived."""
    found = []
    wait_until(lambda: found.extend(inbox.receive()) or len(found) >= count, f"{count} commands arrived")
    return found


def seen(inbox):
    statistics = inbox.statistics()
    return statistics.received + statistics.foreign + statistics.refused + statistics.duplicate


def test_commands_of_the_run_arrive_in_order_with_id_and_time(server, client):
    before = time.monotonic_ns()
    with CommandInbox(server.url, "run") as inbox:
        ids = [send(client, number) for number in range(5)]
        commands = received(inbox, 5)

    assert [item.command.command_id for item in commands] == [f"c-{number}" for number in range(5)]
    assert [item.entry_id for item in commands] == ids
    assert all(before < item.received_at_ns < time.monotonic_ns() for item in commands)


def test_nothing_waiting_is_an_empty_list(server):
    with CommandInbox(server.url, "run") as inbox:
        assert inbox.receive() == []


def test_commands_of_other_runs_are_left_out_and_counted(server, client):
    with CommandInbox(server.url, "run") as inbox:
        send(client, 1, run_id="another")
        send(client, 2)
        [mine] = received(inbox, 1)

        assert mine.command.run_id == "run"
        assert inbox.statistics().foreign == 1


def test_a_command_that_comes_twice_is_handed_over_once(server, client):
    with CommandInbox(server.url, "run") as inbox:
        send(client, 1)
        send(client, 1)
        wait_until(lambda: seen(inbox) == 2, "both copies were read")

        assert [item.command.command_id for item in inbox.receive()] == ["c-1"]
        assert inbox.statistics().duplicate == 1


@pytest.mark.parametrize("sender", [None, Keyring({"k1": b"another"}), Keyring({"k2": b"secret"})])
def test_with_a_keyring_only_its_signatures_count(server, client, sender):
    with CommandInbox(server.url, "run", KEYRING) as inbox:
        send(client, 1, keyring=sender)
        send(client, 2, keyring=KEYRING)
        [trusted] = received(inbox, 1)

        assert trusted.command.command_id == "c-2"
        assert inbox.statistics().refused == 1


def test_an_entry_that_is_no_command_is_refused_and_the_next_one_read(server, client):
    with CommandInbox(server.url, "run") as inbox:
        client.xadd(Stream.COMMANDS, {"bootstrap": "1"})
        client.xadd(Stream.COMMANDS, {**encode_entry(pause(1), None), b"payload": b"\xc1"})
        send(client, 2)
        [command] = received(inbox, 1)

        assert command.command.command_id == "c-2"
        assert inbox.statistics().refused == 2


def test_commands_from_before_the_inbox_are_not_for_it(server, client):
    # Stream ids are milliseconds: an entry of an hour ago.
    seconds, _ = client.time()
    client.xadd(Stream.COMMANDS, encode_entry(pause(1), None), id=f"{(seconds - 3600) * 1000}-0")
    with CommandInbox(server.url, "run") as inbox:
        send(client, 2)

        assert [item.command.command_id for item in received(inbox, 1)] == ["c-2"]
        assert inbox.statistics().received == 1


def test_commands_issued_while_redis_was_unreachable_for_the_inbox_are_received():
    port = free_port()
    with CommandInbox(f"redis://127.0.0.1:{port}/0", "run") as inbox:
        wait_until(lambda: inbox.statistics().retries, "the first attempt failed")
        with EmbeddedRedis(port=port) as late:
            with redis.Redis.from_url(late.url) as client:
                send(client, 1)
            assert [item.command.command_id for item in received(inbox, 1)] == ["c-1"]
            assert inbox.statistics().connected


def test_reading_goes_on_after_redis_died(server, client):
    with CommandInbox(server.url, "run") as inbox:
        send(client, 1)
        received(inbox, 1)
        server.stop(kill=True)
        wait_until(lambda: not inbox.statistics().connected, "the outage was noticed")
        server.start()
        send(client, 2)

        assert [item.command.command_id for item in received(inbox, 1)] == ["c-2"]


def test_what_nobody_receives_is_bounded_and_counted(server, client):
    with CommandInbox(server.url, "run", capacity=3) as inbox:
        for number in range(5):
            send(client, number)
        wait_until(lambda: seen(inbox) == 5, "all were read")

        assert [item.command.command_id for item in inbox.receive()] == ["c-2", "c-3", "c-4"]
        assert inbox.statistics().dropped == 2


def test_what_arrived_can_be_received_after_closing(server, client):
    inbox = CommandInbox(server.url, "run")
    send(client, 1)
    wait_until(lambda: inbox.statistics().waiting, "it arrived")
    inbox.close()

    assert len(inbox.receive()) == 1


def test_an_unusable_url_is_refused():
    with pytest.raises(RedisUrlInvalid, match="redis://"):
        CommandInbox("nonsense", "run")
