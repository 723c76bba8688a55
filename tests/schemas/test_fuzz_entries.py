"""Hostile bytes: whatever an entry holds, it is decoded or refused with a reason. Seeded, 200 000 cases."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from schemas.catalogue import MESSAGES, Limits
from schemas.codec import decode_payload, unpack
from schemas.entry import decode_entry, encode_entry
from schemas.errors import EntryError
from schemas.signing import Keyring
from tests.schemas.test_refused_payloads import LEAST

SEED = 7
PAYLOAD_CASES, GRAMMAR_CASES, ENTRY_CASES = 100_000, 50_000, 50_000
KEYRING = Keyring({"k1": b"secret"})
#: msgpack's one-byte heads and the lengths behind which decoders have been caught out.
HEADS = bytes(range(0x80, 0x100))
LENGTHS = [b"\x00", b"\xff", b"\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01"]


def full_state() -> dict[str, Any]:
    """A state with columns as binaries and as lists."""
    column = np.linspace(0, 1, 6, dtype="<f4")
    return LEAST["SystemStatePacket"] | {
        "training_loss": 2.0,
        "training_metrics": {"gradient_norm": 1.0, "samples_per_s": float("nan")},
        "layers": {"loss_contribution": column.tobytes(), "latency_ms": column.tolist()},
        "seed_states": [{"seed_id": "a", "stage": 3}, {"seed_id": "b"}],
        "hardware": {"gpu_utilization": 0.5},
        "source": None,
    }


def corpus() -> list[tuple[str, bytes]]:
    payloads = [*LEAST.items(), ("SystemStatePacket", full_state()), ("SystemStatePacket", full_state())]
    return [(name, msgpack.packb(value)) for name, value in payloads]


CORPUS = corpus()


def flip(dice: random.Random, data: bytearray) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def overwrite(dice: random.Random, data: bytearray) -> None:
    data[dice.randrange(len(data))] = dice.choice(HEADS)


def cut(dice: random.Random, data: bytearray) -> None:
    del data[dice.randrange(len(data)) :]


def drop(dice: random.Random, data: bytearray) -> None:
    start = dice.randrange(len(data))
    del data[start : start + dice.randrange(1, 9)]


def insert(dice: random.Random, data: bytearray) -> None:
    start = dice.randrange(len(data))
    data[start:start] = bytes([dice.choice(HEADS)]) + dice.choice(LENGTHS)


def repeat(dice: random.Random, data: bytearray) -> None:
    start = dice.randrange(len(data))
    data[start:start] = data[start : start + dice.randrange(1, 17)]


def splice(dice: random.Random, data: bytearray) -> None:
    other = dice.choice(CORPUS)[1]
    data[dice.randrange(len(data)) :] = other[dice.randrange(len(other)) :]


MUTATIONS: list[Callable[[random.Random, bytearray], None]] = [flip, overwrite, cut, drop, insert, repeat, splice]


def mutated(dice: random.Random, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(dice.randrange(1, 4)):
        if data:
            dice.choice(MUTATIONS)(dice, data)
    return bytes(data)


def attempt(decode: Callable[[], object]) -> bool:
    """Whether ``decode`` accepted; any other exception than a refusal fails the test."""
    try:
        decode()
    except EntryError:
        return False
    return True


def test_mutated_payloads_are_decoded_or_refused() -> None:
    dice = random.Random(SEED)
    accepted = 0
    for _ in range(PAYLOAD_CASES):
        name, payload = dice.choice(CORPUS)
        payload = mutated(dice, payload)
        accepted += attempt(lambda name=name, payload=payload: decode_payload(MESSAGES[name], payload))
    assert 0 < accepted < PAYLOAD_CASES  # both outcomes were reached


INTEGERS = [0, -1, 1, 255, 2**31, 2**63 - 1, -(2**63), 2**64 - 1]
FLOATS = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]
TEXTS = ["", "a", "x" * 300, "\x00", "\ud7ff", "🌱"]
LEAVES: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda dice: dice.choice([True, False]),
    lambda dice: dice.choice(INTEGERS),
    lambda dice: dice.choice(FLOATS),
    lambda dice: dice.choice(TEXTS),
    lambda dice: dice.randbytes(dice.randrange(33)),
    lambda dice: msgpack.ExtType(dice.randrange(128), dice.randbytes(4)),
]
BRANCHES: list[Callable[[random.Random, int], Any]] = [
    lambda dice, depth: [value(dice, depth) for _ in range(dice.randrange(4))],
    lambda dice, depth: {str(number): value(dice, depth) for number in range(dice.randrange(3))},
    lambda dice, depth: {dice.choice([1, b"k", "k"]): value(dice, depth)},
]


def value(dice: random.Random, depth: int) -> Any:
    """Any msgpack value, with a leaning to what breaks converters."""
    if depth and dice.random() < 0.3:
        return dice.choice(BRANCHES)(dice, depth - 1)
    return dice.choice(LEAVES)(dice)


def test_fields_with_any_value_are_decoded_or_refused() -> None:
    dice = random.Random(SEED)
    names = {name: list(spec.type.__struct_fields__) for name, spec in MESSAGES.items()}
    for _ in range(GRAMMAR_CASES):
        name = dice.choice(list(LEAST))
        message = dict(LEAST[name])
        for _ in range(dice.randrange(1, 3)):
            message[dice.choice(names[name])] = value(dice, 4)
        payload = msgpack.packb(message)
        attempt(lambda name=name, payload=payload: decode_payload(MESSAGES[name], payload))


def test_entries_with_any_fields_are_decoded_or_refused() -> None:
    dice = random.Random(SEED)
    messages = [decode_payload(MESSAGES[name], payload) for name, payload in CORPUS]
    entries = [encode_entry(message, keyring) for message in messages for keyring in (KEYRING, None)]
    for _ in range(ENTRY_CASES):
        fields = dict(dice.choice(entries))
        for _ in range(dice.randrange(1, 3)):
            name = dice.choice(list(fields) or [b"payload"])
            match dice.randrange(4):
                case 0:
                    fields.pop(name, None)
                case 1:
                    fields[dice.randbytes(3)] = dice.randbytes(5)
                case 2:
                    fields[name] = dice.choice(entries).get(name, b"")
                case _:
                    fields[name] = mutated(dice, fields.get(name, b"") or b"\x00")
        keyring = dice.choice([KEYRING, None])
        attempt(lambda fields=fields, keyring=keyring: decode_entry(fields, keyring))


#: Bombs: small on the wire, large or deep when unpacked.
BOMBS = {
    "a list that claims four billion elements": b"\xdd\xff\xff\xff\xff",
    "a map that claims four billion pairs": b"\xdf\xff\xff\xff\xff",
    "a binary that claims four gigabytes": b"\xc6\xff\xff\xff\xff",
    "a string that claims four gigabytes": b"\xdb\xff\xff\xff\xff",
    "an extension that claims four gigabytes": b"\xc9\xff\xff\xff\xff\x01",
    "a million empty lists": b"\xdc\x0f\xff" + b"\x90" * 4095 + b"\x90" * 1_000_000,
    "ten thousand levels": b"\x91" * 10_000 + b"\xc0",
    "ten thousand levels of maps": b"\x81\xa1a" * 10_000 + b"\xc0",
    "lists of claims": b"\xdc\x0f\xff" + b"\xdd\xff\xff\xff\xff" * 4095,
    "nothing": b"",
    "the reserved byte": b"\xc1",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused(bomb) -> None:
    assert not attempt(lambda: unpack(bomb, Limits(payload=8 << 20)))
