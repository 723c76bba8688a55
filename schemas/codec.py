"""Payload codec: msgpack with hard limits, then strict conversion into typed messages (design §4).

Decoding order is fixed: size cap, unpack with limits, nesting, ``msgspec.convert(strict=True)``. Authentication comes
before any of it (:mod:`schemas.entry`).
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import numpy as np

from schemas.catalogue import MESSAGES, Limits, MessageSpec
from schemas.errors import InvalidPayload, LimitExceeded, OversizedEntry, UndecodablePayload
from schemas.record import Column, Message


def encode_payload(message: Message) -> bytes:
    """Return ``message`` as a msgpack map; columns become little-endian ``bin``.

    Raises:
        OversizedEntry: larger than the message type allows; no reader would accept it.
    """
    payload = _ENCODER.encode(message)
    cap = MESSAGES[type(message).__name__].limits.payload
    if len(payload) > cap:
        raise OversizedEntry(
            f"{type(message).__name__} encodes to {len(payload)} bytes, more than the {cap} allowed; send fewer columns"
        )
    return payload


def canonical_payload(message: Message) -> bytes:
    """Return the one encoding of ``message`` that signatures cover: map keys sorted, defaults left out."""
    return _CANONICAL_ENCODER.encode(message)


def decode_payload(spec: MessageSpec, payload: bytes) -> Message:
    """Return the message in ``payload``.

    Raises:
        OversizedEntry: longer than ``spec.limits.payload``; nothing was unpacked.
        UndecodablePayload: not exactly one msgpack value, or one with extension types.
        LimitExceeded: a string, array, map, binary or the nesting is over its limit.
        InvalidPayload: msgpack, but not a ``spec.type``; the text names the path.
    """
    if len(payload) > spec.limits.payload:
        raise OversizedEntry(
            f"{spec.name} payload is {len(payload)} bytes, limit {spec.limits.payload}", field="payload"
        )
    value = unpack(payload, spec.limits)
    try:
        return msgspec.convert(value, spec.type, strict=True, dec_hook=_decode_column)
    except msgspec.ValidationError as error:
        raise InvalidPayload(f"{spec.name}: {error}", field=_path_in(str(error))) from None


def unpack(payload: bytes, limits: Limits) -> object:
    """Return the plain object in ``payload``, refusing anything over ``limits``."""
    try:
        value: object = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            max_str_len=limits.string,
            max_bin_len=limits.binary,
            max_array_len=limits.array,
            max_map_len=limits.map,
            max_ext_len=0,
        )
    except (msgpack.StackError, RecursionError):
        raise LimitExceeded(f"payload nests deeper than {limits.nesting} levels") from None
    except ValueError as error:
        kind = LimitExceeded if "exceeds max_" in str(error) else UndecodablePayload
        raise kind(f"payload is not acceptable msgpack: {error}") from None
    except Exception as error:  # msgpack raises its own non-ValueError types for truncation and bad bytes
        raise UndecodablePayload(f"payload is not msgpack: {error!r}") from None
    _check_nesting(value, limits.nesting)
    return value


def _check_nesting(value: object, limit: int) -> None:
    level: list[object] = [value]
    for _ in range(limit + 1):
        level = [child for parent in level for child in _containers_in(parent)]
        if not level:
            return
    raise LimitExceeded(f"payload nests deeper than {limit} levels")


def _containers_in(value: object) -> list[object]:
    if isinstance(value, dict):
        return [child for child in value.values() if type(child) in _CONTAINERS]
    if isinstance(value, list):
        return [child for child in value if type(child) in _CONTAINERS]
    return []


_CONTAINERS = frozenset({dict, list})


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} ({len(data)} bytes) is not allowed")


def _decode_column(kind: type, value: object) -> object:
    if issubclass(kind, Column):
        return kind.from_wire(value)
    raise NotImplementedError(f"no wire form for {kind.__name__}")


def _encode_column(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tobytes()
    raise NotImplementedError(f"no wire form for {type(value).__name__}")


def _path_in(text: str) -> str:
    """Return the ``$.a.b`` path that a msgspec error text ends with, or an empty string."""
    start = text.rfind("`$")
    return text[start + 1 : text.rfind("`")] if start >= 0 else ""


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_column)
_CANONICAL_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_column, order="sorted")
