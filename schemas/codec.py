"""Payload codec: msgpack with hard limits, then strict conversion into typed messages (design §4).

Decoding order is fixed: size cap, unpack with limits, nesting, ``msgspec.convert(strict=True)``. Authentication
comes before any of it (:mod:`schemas.entry`). A key whose value is nil is as good as absent, everywhere.
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import numpy as np

from schemas.catalogue import MESSAGES, Limits, MessageSpec
from schemas.errors import EntryError, LimitExceeded, OversizedEntry
from schemas.record import Column, Message
from schemas.refusal import extension_refused, invalid, undecodable


def encode_payload(message: Message) -> bytes:
    """Return ``message`` as a msgpack map; columns become little-endian ``bin``, defaults are left out.

    The payload is read back before it is returned: what a reader would refuse never leaves the sender.

    Raises:
        OversizedEntry: larger than the message type allows.
        LimitExceeded: a string, list, map, column or the nesting is over its limit.
        InvalidPayload: a value outside its contract; the text names the path.
    """
    payload = _ENCODER.encode(message)
    decode_payload(MESSAGES[type(message).__name__], payload)
    return payload


def canonical_payload(message: Message) -> bytes:
    """Return the one encoding of ``message`` that signatures cover: as a reader holds it, map keys sorted.

    Sender and reader get the same bytes, whatever the order of map keys and whether whole numbers were given for
    floats.

    Raises:
        EntryError: as :func:`encode_payload`.
    """
    read_back = decode_payload(MESSAGES[type(message).__name__], _ENCODER.encode(message))
    return _CANONICAL_ENCODER.encode(read_back)


def decode_payload(spec: MessageSpec, payload: bytes) -> Message:
    """Return the message in ``payload``.

    Raises:
        OversizedEntry: longer than ``spec.limits.payload``; nothing was unpacked.
        UndecodablePayload: not exactly one msgpack value, or one with extension types.
        LimitExceeded: a string, array, map, binary, the number of containers or the nesting is over its limit.
        InvalidPayload: msgpack, but not a ``spec.type``; the text names the path.
    """
    check_size(spec, payload)
    value = unpack(payload, spec.limits)
    try:
        return msgspec.convert(value, spec.type, strict=True, dec_hook=_decode_column)
    except msgspec.ValidationError as error:
        raise invalid(spec.name, error, value) from None


def check_size(spec: MessageSpec, payload: bytes) -> None:
    """Raise OversizedEntry where ``payload`` is longer than its message type allows."""
    if len(payload) > spec.limits.payload:
        raise OversizedEntry(
            f"{spec.name} payload is {len(payload)} bytes, limit {spec.limits.payload}; "
            "send fewer columns or entries",
            field="payload",
        )


def unpack(payload: bytes, limits: Limits) -> object:
    """Return the plain object in ``payload``, without keys whose value is nil.

    Raises:
        UndecodablePayload: not exactly one msgpack value, or one with extension types.
        LimitExceeded: over one of ``limits``.
    """
    count = _ContainerCount(limits.containers)
    size = len(payload)  # an element takes a byte: no claim above it can be honest, none is allocated
    try:
        value: object = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            object_hook=count.on_map,
            list_hook=count.on_list,
            ext_hook=_refuse_extension,
            max_str_len=limits.string,
            max_bin_len=limits.binary,
            max_array_len=min(limits.array, size),
            max_map_len=min(limits.map, size),
            max_ext_len=0,
        )
    except EntryError:
        raise
    except (msgpack.StackError, RecursionError):
        raise _too_deep(limits) from None
    except ValueError as error:  # msgpack's other refusals: truncated, trailing bytes, bad UTF-8, over a limit
        raise undecodable(error, limits) from None
    _check_nesting(value, limits)
    return value


class _ContainerCount:
    """Counts lists and maps as they are unpacked: a bomb of empty ones stops at the limit, not at its end."""

    __slots__ = ("_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._left = self._limit = limit

    def on_list(self, items: list[object]) -> list[object]:
        self._count()
        return items

    def on_map(self, items: dict[str, object]) -> dict[str, object]:
        self._count()
        if None in items.values():
            return {key: value for key, value in items.items() if value is not None}
        return items

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise LimitExceeded(
                f"payload holds more than {self._limit} lists and maps; send columns as bin", field="payload"
            )


def _check_nesting(value: object, limits: Limits) -> None:
    level: list[object] = [value]
    for _ in range(limits.nesting):
        level = [child for parent in level for child in _containers_in(parent)]
        if not level:
            return
    raise _too_deep(limits)


def _too_deep(limits: Limits) -> LimitExceeded:
    return LimitExceeded(f"payload nests deeper than {limits.nesting} levels; flatten it", field="payload")


def _containers_in(value: object) -> list[object]:
    if isinstance(value, dict):
        return [child for child in value.values() if type(child) in _CONTAINERS]
    if isinstance(value, list):
        return [child for child in value if type(child) in _CONTAINERS]
    return []


_CONTAINERS = frozenset({dict, list})


def _refuse_extension(_code: int, data: bytes) -> object:
    raise extension_refused(len(data))


def _decode_column(kind: type, value: object) -> object:
    if issubclass(kind, Column):
        return kind.from_wire(value)
    raise NotImplementedError(f"no wire form for {kind.__name__}; declare the field as a column or a plain type")


def _encode_value(value: Any) -> object:
    if isinstance(value, Column):
        return np.ascontiguousarray(value, dtype=value.wire_dtype).tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"no wire form for {type(value).__name__}; give a plain number, string, list or map")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_value)
_CANONICAL_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_value, order="sorted")
