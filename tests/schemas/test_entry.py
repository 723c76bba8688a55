"""The entry envelope: required fields, version, types by stream, trace context."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from schemas.catalogue import MESSAGES, MessageSpec, Stream
from schemas.entry import MAX_FIELD_BYTES, decode_entry, encode_entry
from schemas.errors import EntryError, MalformedEntry, UnknownType, UnsupportedVersion
from schemas.signing import Keyring
from schemas.telemetry import TelemetryPacket
from tests.schemas.strategies import same

PACKET = TelemetryPacket(packet_id="p", timestamp=1, source_subsystem="tolaria")
ENTRY = encode_entry(PACKET, None, event_id="event-1")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_an_entry_holds_type_version_id_and_payload():
    assert ENTRY.keys() == {b"type", b"v", b"id", b"payload"}
    assert (ENTRY[b"type"], ENTRY[b"v"], ENTRY[b"id"]) == (b"TelemetryPacket", b"1", b"event-1")


def test_a_signed_entry_names_its_key():
    entry = encode_entry(PACKET, Keyring({"key-1": b"secret"}))
    assert entry.keys() == {b"type", b"v", b"id", b"payload", b"kid", b"signature"}
    assert entry[b"kid"] == b"key-1"


def test_every_entry_gets_an_event_id_of_its_own():
    ids = [encode_entry(PACKET, None)[b"id"].decode() for _ in range(2)]
    assert [str(uuid.UUID(event_id)) for event_id in ids] == ids
    assert ids[0] != ids[1]


@dataclass(frozen=True)
class Refused:
    """An entry with some fields replaced (None: removed), and why it is refused."""

    fields: Mapping[bytes, bytes | None]
    error: type[EntryError]
    field: str
    says: str


REFUSED = [
    Refused({b"type": None}, MalformedEntry, "type", "no `type` field; add it"),
    Refused({b"v": None}, MalformedEntry, "v", "no `v` field; add it"),
    Refused({b"id": None}, MalformedEntry, "id", "no `id` field; add it"),
    Refused({b"payload": None}, MalformedEntry, "payload", "no `payload` field; add it"),
    Refused({b"type": b""}, MalformedEntry, "type", "`type` is empty; fill it"),
    Refused({b"id": b""}, MalformedEntry, "id", "`id` is empty; fill it"),
    Refused({b"id": b"\xff"}, MalformedEntry, "id", r"`id` is b'\xff', which is not UTF-8; encode it so"),
    Refused({b"id": b"x" * 513}, MalformedEntry, "id", "`id` is 513 bytes, limit 512; shorten it"),
    Refused({b"type": b"x" * 513}, MalformedEntry, "type", "`type` is 513 bytes, limit 512; shorten it"),
    Refused({b"type": b"Telemetry"}, UnknownType, "type", "`type` 'Telemetry' is no message; send one of System"),
    Refused({b"v": b"2"}, UnsupportedVersion, "v", "`v` is '2', this build reads 1; publish that version"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.says)
def test_a_malformed_entry_is_refused_with_field_value_and_fix(case: Refused):
    fields = {name: value for name, value in (ENTRY | case.fields).items() if value is not None}
    with pytest.raises(case.error) as refused:
        decode_entry(fields, None)
    assert refused.value.field == case.field
    assert case.says in str(refused.value)


def test_the_reasons_are_those_that_dead_letters_and_metrics_name():
    assert {error.__name__: error.reason for error in EntryError.__subclasses__()} == {
        "MalformedEntry": "malformed_entry",
        "UnknownType": "unknown_type",
        "UnsupportedVersion": "unsupported_version",
        "OversizedEntry": "oversized_entry",
        "SignatureMissing": "missing_signature",
        "SignatureInvalid": "invalid_signature",
        "UnknownKey": "unknown_key",
        "UndecodablePayload": "undecodable_payload",
        "LimitExceeded": "limit_exceeded",
        "InvalidPayload": "invalid_payload",
    }


def test_an_event_id_that_no_reader_takes_is_refused_at_the_sender():
    with pytest.raises(MalformedEntry, match="`id` is 600 bytes"):
        encode_entry(PACKET, None, event_id="x" * 600)


def test_a_key_id_that_no_reader_takes_is_refused_at_the_sender():
    with pytest.raises(MalformedEntry, match="`kid` is 600 bytes"):
        encode_entry(PACKET, Keyring({"k" * 600: b"secret"}))


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("spec", MESSAGES.values(), ids=MESSAGES)
def test_a_type_is_taken_only_from_streams_that_carry_it(spec: MessageSpec, stream: Stream):
    entry = ENTRY | {b"type": spec.name.encode(), b"payload": b"\xc1"}
    with pytest.raises(EntryError) as refused:
        decode_entry(entry, None, stream=stream)
    expected = "undecodable_payload" if stream in spec.streams else "unknown_type"
    assert refused.value.reason == expected


def test_a_valid_entry_on_the_wrong_stream_is_told_where_it_belongs():
    with pytest.raises(UnknownType, match=r"does not belong on oona\.policy; publish it to oona\.telemetry"):
        decode_entry(ENTRY, None, stream=Stream.POLICY)


def test_a_valid_entry_on_its_stream_is_taken():
    assert same(decode_entry(ENTRY, None, stream=Stream.TELEMETRY).message, PACKET)


def test_unknown_entry_fields_are_ignored():
    assert same(decode_entry(ENTRY | {b"shard": b"7"}, None).message, PACKET)


def test_the_trace_context_travels_with_the_entry():
    trace = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "secret=1"}
    fields = encode_entry(PACKET, None, trace=trace)
    assert b"baggage" not in fields
    entry = decode_entry(fields, None)
    assert (entry.traceparent, entry.tracestate) == (TRACEPARENT, "a=1")


def test_an_entry_without_trace_context_has_none():
    entry = decode_entry(ENTRY, None)
    assert (entry.traceparent, entry.tracestate) == (None, None)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"x" * (MAX_FIELD_BYTES + 1)])
def test_an_unreadable_trace_context_never_costs_the_message(raw: bytes):
    entry = decode_entry(ENTRY | {b"traceparent": raw}, None)
    assert entry.traceparent is None
    assert same(entry.message, PACKET)
