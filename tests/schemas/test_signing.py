"""Signatures: nothing unauthenticated is unpacked, no field can be swapped, keys can be rotated."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.entry import EntryFields, decode_entry, encode_entry
from schemas.enums import EmergencyLevel
from schemas.errors import EntryError, SignatureInvalid, SignatureMissing, UndecodablePayload, UnknownKey
from schemas.record import Message
from schemas.signing import Keyring
from schemas.telemetry import EmergencySignal, TelemetryPacket
from schemas.urabrask import BlueprintSafetyFailed
from tests.schemas.strategies import any_message, same

OLD, NEW = b"secret of last month", b"secret of this month"
KEYRING = Keyring({"new": NEW, "old": OLD})
PACKET = TelemetryPacket(packet_id="p", timestamp=1, source_subsystem="tolaria")
ENTRY = encode_entry(PACKET, KEYRING, event_id="event-1")
UNDECODABLE = b"\xc1 no msgpack"


def sign(entry: EntryFields, secret: bytes) -> bytes:
    """The signature as any other publisher computes it from the documentation."""
    parts = [entry[name] for name in (b"type", b"v", b"id", b"kid", b"payload")]
    text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return base64.b64encode(hmac.digest(secret, text, hashlib.sha256))


def test_the_signature_covers_type_version_id_key_and_payload():
    assert ENTRY[b"signature"] == sign(ENTRY, NEW)


def test_an_entry_that_another_publisher_signed_is_taken():
    entry = {name: value for name, value in ENTRY.items() if name != b"signature"} | {b"id": b"other"}
    entry[b"signature"] = sign(entry, NEW)
    assert decode_entry(entry, KEYRING).event_id == "other"


def test_an_unsigned_entry_is_refused():
    with pytest.raises(SignatureMissing, match="entry is unsigned; sign it with an active key"):
        decode_entry(encode_entry(PACKET, None), KEYRING)


def test_an_entry_with_an_empty_signature_is_refused():
    with pytest.raises(SignatureMissing):
        decode_entry(ENTRY | {b"signature": b""}, KEYRING)


@pytest.mark.parametrize(
    "signature", [b"x", b"A" * 44, ENTRY[b"signature"][:-1], ENTRY[b"signature"] + b"=", b"\xff"]
)
def test_an_entry_with_another_signature_is_refused(signature: bytes):
    with pytest.raises(
        SignatureInvalid, match="does not match under key 'new'; sign the entry as sent"
    ) as refused:
        decode_entry(ENTRY | {b"signature": signature}, KEYRING)
    assert refused.value.field == "signature"


@pytest.mark.parametrize("kid", [b"", b"stolen"])
def test_an_entry_of_an_unknown_key_is_refused(kid: bytes):
    entry = ENTRY | {b"kid": kid}
    with pytest.raises(UnknownKey, match="is not active; sign with one of new, old") as refused:
        decode_entry(entry | {b"signature": sign(entry, NEW)}, KEYRING)
    assert refused.value.field == "kid"


def test_an_entry_without_key_id_is_refused():
    with pytest.raises(UnknownKey):
        decode_entry({name: value for name, value in ENTRY.items() if name != b"kid"}, KEYRING)


def test_an_entry_of_another_secret_is_refused():
    with pytest.raises(SignatureInvalid):
        decode_entry(encode_entry(PACKET, Keyring({"new": b"guessed"})), KEYRING)


def test_a_payload_is_not_unpacked_before_its_signature_is_verified():
    entry = ENTRY | {b"payload": UNDECODABLE}
    with pytest.raises(SignatureInvalid):
        decode_entry(entry, KEYRING)
    with pytest.raises(UndecodablePayload):
        decode_entry(entry | {b"signature": sign(entry, NEW)}, KEYRING)


def test_an_unsigned_payload_is_not_unpacked():
    with pytest.raises(SignatureMissing):
        decode_entry({b"type": b"FieldReport", b"v": b"1", b"id": b"1", b"payload": UNDECODABLE}, KEYRING)


def test_the_decoder_is_not_reached_without_a_signature(monkeypatch: pytest.MonkeyPatch):
    reached: list[object] = []
    monkeypatch.setattr("schemas.entry.decode_payload", lambda *given: reached.append(given))
    for signature in (b"", b"A" * 44):
        with pytest.raises(EntryError):
            decode_entry(ENTRY | {b"signature": signature}, KEYRING)
    assert reached == []


def test_an_oversized_payload_is_refused_before_its_signature_is_computed():
    with pytest.raises(EntryError) as refused:
        decode_entry(ENTRY | {b"payload": b"\x00" * (1024 * 1024 + 1)}, KEYRING)
    assert refused.value.reason == "oversized_entry"


OTHER = encode_entry(
    BlueprintSafetyFailed(blueprint_id="b", reason="r", issued_at=1), Keyring({"old": OLD}), event_id="event-2"
)


@pytest.mark.parametrize("field", [b"type", b"id", b"kid", b"payload", b"signature"])
def test_a_field_of_another_valid_entry_is_refused(field: bytes):
    assert decode_entry(OTHER, KEYRING).event_id == "event-2"
    with pytest.raises(SignatureInvalid):
        decode_entry(ENTRY | {field: OTHER[field]}, KEYRING)
    with pytest.raises(SignatureInvalid):
        decode_entry(OTHER | {field: ENTRY[field]}, KEYRING)


def test_no_byte_can_move_from_one_field_to_the_next():
    keyring = Keyring({"1k": NEW, "k": NEW})
    entry = encode_entry(PACKET, keyring, event_id="event-")
    with pytest.raises(SignatureInvalid):
        decode_entry(entry | {b"id": b"event-1", b"kid": b"k"}, keyring)


#: Which refusals a flipped bit can lead to, by the field it is in.
REASONS: dict[bytes, set[str]] = {
    b"type": {"unknown_type", "malformed_entry"},
    b"v": {"unsupported_version", "malformed_entry"},
    b"id": {"invalid_signature", "malformed_entry"},
    b"kid": {"unknown_key", "malformed_entry"},
    b"payload": {"invalid_signature"},
    b"signature": {"invalid_signature"},
}


@settings(max_examples=200, deadline=None)
@given(message=any_message(), data=st.data())
def test_a_flipped_bit_anywhere_is_refused(message: Message, data: st.DataObject):
    entry = encode_entry(message, KEYRING)
    field = data.draw(st.sampled_from(list(REASONS)))
    altered = bytearray(entry[field])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(EntryError) as refused:
        decode_entry(entry | {field: bytes(altered)}, KEYRING)
    assert refused.value.reason in REASONS[field]


def test_the_first_key_signs():
    assert encode_entry(PACKET, KEYRING)[b"kid"] == b"new"


def test_entries_of_both_keys_are_taken_while_rotating():
    for keyring in (Keyring({"old": OLD}), Keyring({"new": NEW})):
        assert same(decode_entry(encode_entry(PACKET, keyring), KEYRING).message, PACKET)


def test_entries_of_a_retired_key_are_refused():
    entry = encode_entry(PACKET, Keyring({"old": OLD}))
    with pytest.raises(UnknownKey, match="key id 'old' is not active; sign with one of new"):
        decode_entry(entry, Keyring({"new": NEW}))


def test_without_a_keyring_signed_and_unsigned_entries_are_taken():
    assert same(decode_entry(ENTRY, None).message, PACKET)
    assert same(decode_entry(encode_entry(PACKET, None), None).message, PACKET)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "0 signing keys given; configure one, or two"),
        ({"a": b"1", "b": b"2", "c": b"3"}, "3 signing keys given; configure one, or two"),
        ({"a": b""}, "signing key 'a' is empty; give every key"),
        ({"": b"1"}, "signing key '' is empty; give every key"),
    ],
)
def test_a_keyring_that_cannot_work_is_refused(keys: dict[str, bytes], says: str):
    with pytest.raises(ValueError, match=says):
        Keyring(keys)


def test_a_keyring_does_not_show_its_secrets():
    assert "secret" not in repr(KEYRING)


def test_a_command_signature_is_checked_with_the_key_that_made_it():
    parts = [b"canonical", b"payload"]
    signature = KEYRING.sign("old", parts)
    KEYRING.verify("old", parts, signature)
    with pytest.raises(SignatureInvalid):
        KEYRING.verify("new", parts, signature)


def test_a_halt_of_one_run_cannot_be_made_the_halt_of_another():
    signal = EmergencySignal(
        level=EmergencyLevel.HALT, reason="r", origin="tolaria", triggered_at=1, run_id="run-1"
    )
    entry = encode_entry(signal, KEYRING)
    with pytest.raises(SignatureInvalid):
        decode_entry(entry | {b"payload": entry[b"payload"].replace(b"run-1", b"run-2")}, KEYRING)
