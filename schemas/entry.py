"""The entry envelope: what one Redis Streams entry holds (design §4).

Fields, all bytes: ``type``, ``v``, ``id``, ``payload``, ``signature``, ``kid`` and optional W3C ``traceparent``
and ``tracestate``. The signature covers type, v, id, kid and payload, so no field can be swapped between entries.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.catalogue import MESSAGES, MessageSpec, Stream
from schemas.codec import check_size, decode_payload, encode_payload
from schemas.errors import MalformedEntry, UnknownType, UnsupportedVersion
from schemas.record import Message
from schemas.signing import Keyring

SCHEMA_VERSION = "1"
#: Longest envelope field but ``payload``. W3C asks that a tracestate of 512 characters be carried.
MAX_FIELD_BYTES = 512
SIGNED_FIELDS = ("type", "v", "id", "kid")
TRACE_FIELDS = ("traceparent", "tracestate")

EntryFields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified, decoded entry. ``event_id`` is the producer's id and the deduplication key."""

    event_id: str
    message: Message
    traceparent: str | None = None
    tracestate: str | None = None


def encode_entry(
    message: Message,
    keyring: Keyring | None,
    *,
    event_id: str | None = None,
    trace: Mapping[str, str] | None = None,
) -> EntryFields:
    """Return the entry fields that publish ``message``, signed when a keyring is given.

    Of ``trace`` (a propagation carrier) only ``traceparent`` and ``tracestate`` are sent.

    Raises:
        EntryError: a reader would refuse the message (:func:`schemas.codec.encode_payload`) or its event id.
    """
    fields: EntryFields = {
        b"type": type(message).__name__.encode(),
        b"v": SCHEMA_VERSION.encode(),
        b"id": (event_id or str(uuid.uuid4())).encode(),
        b"payload": encode_payload(message),
    }
    _text(fields, "id")
    if keyring is not None:
        fields[b"kid"] = keyring.signing_kid.encode()
        fields[b"signature"] = keyring.sign(keyring.signing_kid, _signed_parts(fields))
        _text(fields, "kid")
    for name in TRACE_FIELDS:
        if trace and trace.get(name):
            fields[name.encode()] = trace[name].encode()
    return fields


def decode_entry(fields: Mapping[bytes, bytes], keyring: Keyring | None, *, stream: Stream | None = None) -> Entry:
    """Return the entry in ``fields``: envelope, then size, then signature, then payload.

    Args:
        fields: the raw fields of a stream entry.
        keyring: active keys; None accepts unsigned entries (the worker says so loudly at start).
        stream: the stream it was read from; a type that stream does not carry is refused.

    Raises:
        EntryError: one subclass per reason (:mod:`schemas.errors`).
    """
    spec = _spec_of(fields, stream)
    payload = _required(fields, "payload")
    check_size(spec, payload)
    event_id = _text(fields, "id")
    if keyring is not None:
        kid = _text(fields, "kid", default="")
        keyring.verify(kid, _signed_parts(fields), fields.get(b"signature", b""))
    return Entry(
        event_id=event_id,
        message=decode_payload(spec, payload),
        traceparent=_trace_field(fields, "traceparent"),
        tracestate=_trace_field(fields, "tracestate"),
    )


def _spec_of(fields: Mapping[bytes, bytes], stream: Stream | None) -> MessageSpec:
    version = _text(fields, "v")
    if version != SCHEMA_VERSION:
        raise UnsupportedVersion(
            f"`v` is {version!r}, this build reads {SCHEMA_VERSION}; publish that version", field="v"
        )
    name = _text(fields, "type")
    spec = MESSAGES.get(name)
    if spec is None:
        raise UnknownType(f"`type` {name!r} is no message; send one of {', '.join(MESSAGES)}", field="type")
    if stream is not None and stream not in spec.streams:
        carried = ", ".join(spec.streams)
        raise UnknownType(f"{name} does not belong on {stream}; publish it to {carried}", field="type")
    return spec


def _signed_parts(fields: Mapping[bytes, bytes]) -> list[bytes]:
    return [fields.get(name.encode(), b"") for name in SIGNED_FIELDS] + [fields[b"payload"]]


def _required(fields: Mapping[bytes, bytes], name: str) -> bytes:
    value = fields.get(name.encode())
    if value is None:
        raise MalformedEntry(f"entry has no `{name}` field; add it", field=name)
    return value


def _text(fields: Mapping[bytes, bytes], name: str, *, default: str | None = None) -> str:
    raw = _required(fields, name) if default is None else fields.get(name.encode(), default.encode())
    if len(raw) > MAX_FIELD_BYTES:
        raise MalformedEntry(f"`{name}` is {len(raw)} bytes, limit {MAX_FIELD_BYTES}; shorten it", field=name)
    if default is None and not raw:
        raise MalformedEntry(f"`{name}` is empty; fill it", field=name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise MalformedEntry(f"`{name}` is {raw!r}, which is not UTF-8; encode it so", field=name) from None


def _trace_field(fields: Mapping[bytes, bytes], name: str) -> str | None:
    """Return the trace field, or None where it is absent or unreadable: tracing never costs a message."""
    raw = fields.get(name.encode(), b"")
    return raw.decode() if raw and raw.isascii() and len(raw) <= MAX_FIELD_BYTES else None
