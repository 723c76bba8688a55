"""Hard limits hold while a payload is unpacked: no claim, bomb or depth costs memory."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest

from schemas.catalogue import MESSAGES, Limits, MessageSpec
from schemas.codec import decode_payload, unpack
from schemas.errors import EntryError, LimitExceeded, OversizedEntry, UndecodablePayload

CLAIMS = {
    "array": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "string": b"\xdb\xff\xff\xff\xff",
    "binary": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
    "array within its limit": b"\xdd\x00\x07\xa1\x20",
    "nested arrays": b"\xdd\x00\x07\xa1\x20" * 200,
    "arrays in a map": b"\x81\xa1x" + b"\xdd\x00\x00\xff\xff" * 7,
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_of_elements_that_are_not_there_allocates_nothing(claim: bytes):
    refused, peak = _peak_bytes(lambda: decode_payload(MESSAGES["SystemStatePacket"], claim))
    assert isinstance(refused, LimitExceeded | UndecodablePayload)
    assert peak < 64 * 1024


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\xdc\x00\x05\x01", "ends inside a list that claims 5 elements; send the whole payload"),
        (b"\xde\x00\x05\xa1", "ends inside a map that claims 5 keys; send the whole payload"),
    ],
)
def test_a_claim_of_more_elements_than_bytes_is_a_truncated_payload(payload: bytes, says: str):
    with pytest.raises(UndecodablePayload, match=says):
        decode_payload(MESSAGES["SystemStatePacket"], payload)


@pytest.mark.parametrize("empty", [b"\x90", b"\x80"], ids=["lists", "maps"])
def test_a_bomb_of_a_million_empty_containers_stops_at_the_limit(empty: bytes):
    bomb = b"\x93" + (b"\xdd" + (333_333).to_bytes(4, "big") + empty * 333_333) * 3
    refused, peak = _peak_bytes(lambda: decode_payload(MESSAGES["SystemStatePacket"], bomb))
    assert isinstance(refused, LimitExceeded)
    assert "more than 20000 lists and maps; send columns as bin" in str(refused)
    assert peak < 8 * 1024 * 1024


def _peak_bytes(decode: Callable[[], object]) -> tuple[EntryError, int]:
    """The refusal that ``decode`` raises, and the most memory in use until then."""
    tracemalloc.start()
    try:
        with pytest.raises(EntryError) as refused:
            decode()
        return refused.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SMALL = Limits(payload=1000, array=3, map=3, string=3, binary=3, containers=5, nesting=4)
AT_THE_LIMIT: dict[str, object] = {
    "array": [1, 2, 3],
    "map": {"a": 1, "b": 2, "c": 3},
    "string": "abc",
    "binary": b"abc",
    "containers": [[], [], [[]]],
    "nesting": [[[[]]]],
}
OVER_THE_LIMIT: dict[str, object] = {
    "array": [1, 2, 3, 4],
    "map": {"a": 1, "b": 2, "c": 3, "d": 4},
    "string": "abcd",
    "binary": b"abcd",
    "containers": [[], [[]], [[]]],
    "nesting": [[[[[]]]]],
}


@pytest.mark.parametrize("limit", AT_THE_LIMIT)
def test_what_is_at_a_limit_is_unpacked(limit: str):
    assert unpack(msgpack.packb(AT_THE_LIMIT[limit]), SMALL) == AT_THE_LIMIT[limit]


@pytest.mark.parametrize("limit", OVER_THE_LIMIT)
def test_what_is_over_a_limit_is_refused(limit: str):
    with pytest.raises(LimitExceeded, match=r"; (send|flatten)") as refused:
        unpack(msgpack.packb(OVER_THE_LIMIT[limit]), SMALL)
    assert refused.value.reason == "limit_exceeded"
    assert str(getattr(SMALL, limit)) in str(refused.value)


def test_strings_are_measured_in_bytes():
    with pytest.raises(LimitExceeded, match="string of 4 bytes, limit 3"):
        unpack(msgpack.packb("ää"), SMALL)


def test_a_limit_holds_at_any_depth():
    with pytest.raises(LimitExceeded, match="bin of 4 bytes, limit 3"):
        unpack(msgpack.packb([{"a": [b"abcd"]}]), SMALL)


@pytest.mark.parametrize("levels", [100, 1_000, 10_000, 100_000])
def test_deep_nesting_is_refused_before_it_exhausts_the_stack(levels: int):
    payload = b"\x91" * levels + b"\x90"
    with pytest.raises(LimitExceeded, match="nests deeper than 8 levels; flatten it"):
        decode_payload(MESSAGES["SystemStatePacket"], payload)


@pytest.mark.parametrize("spec", MESSAGES.values(), ids=MESSAGES)
def test_a_message_type_has_its_own_limits(spec: MessageSpec):
    limits = spec.limits
    over = {
        "array": [1] * (limits.array + 1),
        "map": {str(key): 1 for key in range(limits.map + 1)},
        "string": "x" * (limits.string + 1),
        "nesting": functools.reduce(lambda inner, _: [inner], range(limits.nesting), 0),
        "containers": [[[]] * (limits.containers // 2 // 8 + 1)] * 8 + [[[]] * (limits.containers // 2)],
    }
    for limit, value in over.items():
        payload = msgpack.packb({"x": value})
        if len(payload) <= limits.payload:
            with pytest.raises(LimitExceeded, match=LIMIT_TEXTS[limit]):
                decode_payload(spec, payload)


LIMIT_TEXTS = {
    "array": "a list of",
    "map": "a map of",
    "string": "a string of",
    "nesting": "nests deeper",
    "containers": "lists and maps|a list of",
}


@pytest.mark.parametrize("spec", MESSAGES.values(), ids=MESSAGES)
def test_a_payload_over_its_size_is_refused_before_it_is_unpacked(spec: MessageSpec):
    small = replace(spec, limits=replace(spec.limits, payload=100))
    assert spec.limits.payload <= 64 * 1024 * 1024
    with pytest.raises(OversizedEntry, match=r"payload is 101 bytes, limit 100; send fewer") as refused:
        decode_payload(small, b"\xc1" * 101)
    assert refused.value.reason == "oversized_entry"
    with pytest.raises(UndecodablePayload):
        decode_payload(small, b"\xc1" * 100)
