"""Every message type survives its own encoding, and any other publisher's plain msgpack."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalogue import MESSAGES, MessageSpec
from schemas.codec import canonical_payload, decode_payload, encode_payload
from schemas.entry import decode_entry, encode_entry
from schemas.signing import Keyring
from tests.schemas.strategies import messages, plain, same

KEYRING = Keyring({"key-1": b"secret of the tests"})
EVERY_TYPE = pytest.mark.parametrize("spec", MESSAGES.values(), ids=MESSAGES)
EXAMPLES = settings(max_examples=25, deadline=None)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_a_message_decodes_to_itself(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    entry = decode_entry(encode_entry(message, KEYRING, event_id="event-1"), KEYRING)
    assert same(entry.message, message)
    assert entry.event_id == "event-1"


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_plain_maps_and_lists_of_another_publisher_decode_to_the_same_message(
    spec: MessageSpec, data: st.DataObject
):
    message = data.draw(messages(spec.type))
    assert same(decode_payload(spec, msgpack.packb(plain(message))), message)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_nil_in_a_list_of_floats_is_not_measured(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    assert same(decode_payload(spec, msgpack.packb(plain(message, nan=None))), message)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_whole_numbers_are_accepted_where_floats_are_named(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    packed = msgpack.packb(_whole_floats_as_ints(plain(message)))
    decoded = decode_payload(spec, packed)
    assert msgpack.packb(_whole_floats_as_ints(plain(decoded))) == packed


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_unknown_fields_are_ignored(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    payload = msgpack.packb(plain(message) | {"from_the_future": {"a": [1, None, "x", b"y", True]}})
    assert same(decode_payload(spec, payload), message)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_a_field_that_is_nil_is_as_good_as_absent(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    absent = set(spec.type.__struct_fields__) - plain(message).keys()
    payload = msgpack.packb(plain(message) | dict.fromkeys(absent))
    assert same(decode_payload(spec, payload), message)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_sender_and_reader_have_the_same_canonical_payload(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    assert canonical_payload(decode_payload(spec, encode_payload(message))) == canonical_payload(message)


@EVERY_TYPE
@EXAMPLES
@given(data=st.data())
def test_the_canonical_payload_does_not_depend_on_the_order_of_keys(spec: MessageSpec, data: st.DataObject):
    message = data.draw(messages(spec.type))
    reordered = msgpack.packb(_reversed(msgpack.unpackb(encode_payload(message))))
    assert canonical_payload(decode_payload(spec, reordered)) == canonical_payload(message)


def _whole_floats_as_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_floats_as_ints(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole and math.copysign(1, value) > 0 else value


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(item) for key, item in reversed(value.items())}
    return [_reversed(item) for item in value] if isinstance(value, list) else value
