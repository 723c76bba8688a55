"""The dead letter as an operator handles it: nothing leaves it unasked, what goes back goes back whole."""

from __future__ import annotations

import json

import fakeredis
import pytest
import redis

from producers.dead_letter import dead_letter_fields
from schemas.entry import encode_entry
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.dead_letters import (
    Chosen,
    DeadLetters,
    LetterNotFound,
    LetterUnusable,
    NothingChosen,
    explain,
)
from tests.test_cli import run

STATE = "oona.tolaria.state"
KEYRING = Keyring({"k1": b"secret"})
PACKET = SystemStatePacket(run_id="run", packet_id="run-1", global_step=1, timestamp_ns=1)


@pytest.fixture(params=["fake", "real"])
def client(request):
    if request.param == "fake":
        yield fakeredis.FakeRedis()
        return
    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as opened:
        yield opened


def refuse(client, *, reason: str = "invalid_signature", stream: str = STATE, original=None) -> str:
    fields = dead_letter_fields(
        original if original is not None else encode_entry(PACKET, KEYRING),
        reason=reason,
        detail="why",
        stream=stream,
        entry_id="5-1",
        deliveries=2,
    )
    return client.xadd("dead", fields).decode()


def letters_of(client) -> DeadLetters:
    return DeadLetters(client, "dead", {STATE})


def test_a_letter_tells_what_it_was_and_why(client) -> None:
    letter_id = refuse(client)
    (letter,) = letters_of(client)
    assert (letter.letter_id, letter.reason, letter.detail) == (letter_id, "invalid_signature", "why")
    assert (letter.stream, letter.entry_id, letter.deliveries) == (STATE, "5-1", 2)
    assert letter.type == "SystemStatePacket"
    assert letter.original == encode_entry(PACKET, KEYRING, event_id=letter.original[b"id"].decode())


def test_letters_beyond_a_page_are_all_listed_in_order(client) -> None:
    ids = [refuse(client, reason=f"r{number}", original={b"type": b"X"}) for number in range(501)]
    assert [letter.letter_id for letter in letters_of(client)] == ids


def test_a_replayed_letter_is_back_in_its_stream_and_nowhere_else(client) -> None:
    original = encode_entry(PACKET, KEYRING)
    letters = letters_of(client)
    new_id = letters.replay(letters.get(refuse(client, original=original)))
    ((entry_id, fields),) = client.xrange(STATE)
    assert (entry_id.decode(), fields) == (new_id, original)
    assert client.xlen("dead") == 0


@pytest.mark.parametrize(
    "unusable", [{"stream": "somebody.elses"}, {"original": {}}], ids=["foreign stream", "content lost"]
)
def test_what_cannot_go_back_stays_where_it_is(client, unusable) -> None:
    letters = letters_of(client)
    letter = letters.get(refuse(client, **unusable))
    with pytest.raises(LetterUnusable, match=letter.letter_id):
        letters.replay(letter)
    assert client.xlen("dead") == 1
    assert not client.exists("somebody.elses")


def test_only_the_chosen_letters_are_purged(client) -> None:
    first, second, third = refuse(client, reason="a"), refuse(client, reason="b"), refuse(client, reason="a")
    letters = letters_of(client)
    assert letters.purge(Chosen(reason="a").of(letters)) == 2
    assert [letter.letter_id for letter in letters] == [second]
    assert {first, third}.isdisjoint({letter.letter_id for letter in letters})


def test_nothing_is_chosen_unless_it_is_named(client) -> None:
    letters = letters_of(client)
    refuse(client)
    with pytest.raises(NothingChosen, match="--all"):
        Chosen().of(letters)
    with pytest.raises(LetterNotFound, match="9-9"):
        Chosen(ids=("9-9",)).of(letters)
    with pytest.raises(LetterNotFound, match="dlq ls"):
        letters.get("not an id")
    assert len(Chosen(every=True).of(letters)) == 1


def test_explain_says_whether_a_reader_would_take_it_now(client) -> None:
    letters = letters_of(client)
    letter = letters.get(refuse(client))
    assert "SystemStatePacket(" in explain(letter, KEYRING)
    assert "invalid_signature" in explain(letter, Keyring({"k1": b"another"}))


def test_the_commands_list_show_replay_and_purge(redis_url, tmp_path) -> None:
    environment = {"TAMIYO_REDIS_URL": redis_url, "cwd": tmp_path}
    with redis.Redis.from_url(redis_url) as client:
        for reason in ("unknown_type", "invalid_signature"):
            fields = dead_letter_fields(
                encode_entry(PACKET, None), reason=reason, detail="d", stream=STATE, entry_id="1-1", deliveries=1
            )
            client.xadd("oona.deadletter", fields)
        listed = json.loads(run("dlq", "ls", "--json", "-", **environment).stdout)
        assert [row["reason"] for row in listed] == ["unknown_type", "invalid_signature"]
        shown = run("dlq", "show", listed[0]["id"], **environment).stdout
        assert "packet_id='run-1'" in shown
        assert run("dlq", "replay", "--reason", "unknown_type", **environment).returncode == 0
        assert client.xlen(STATE) == 1
        assert "1 deleted" in run("dlq", "purge", "--all", **environment).stdout
        assert client.xlen("oona.deadletter") == 0
    refused = run("dlq", "purge", **environment)
    assert (refused.returncode, "--all" in refused.stderr) == (2, True)
    assert run("dlq", "show", "1-1", **environment).returncode == 2
