"""Forged entries: of 20 000 alterations of signed entries none is accepted, and no genuine one is refused."""

from __future__ import annotations

import base64
import random

import pytest

from schemas.entry import SIGNED_FIELDS, EntryFields, decode_entry, encode_entry
from schemas.errors import EntryError, SignatureInvalid, UnknownKey
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket

SEED = 11
CASES = 20_000
OLD, NEW, FOREIGN = b"the old secret", b"the new secret", b"somebody else's secret"
OURS = Keyring({"k2": NEW, "k1": OLD})
SIGNED = [name.encode() for name in (*SIGNED_FIELDS, "payload", "signature")]


def packet(step: int) -> SystemStatePacket:
    return SystemStatePacket(run_id="run", packet_id=f"p{step}", global_step=step, timestamp_ns=step)


def accepted(fields: EntryFields, keyring: Keyring = OURS) -> bool:
    try:
        decode_entry(fields, keyring)
    except EntryError:
        return False
    return True


def altered_byte(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    name = dice.choice(SIGNED)
    data = bytearray(fields[name])
    data[dice.randrange(len(data))] ^= dice.randrange(1, 256)
    fields[name] = bytes(data)


def swapped_field(dice: random.Random, fields: EntryFields, other: EntryFields) -> None:
    name = dice.choice([b"id", b"payload", b"signature"])
    fields[name] = other[name]


def shifted_boundary(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    """Bytes move from one field to its neighbour: the concatenation stays the same."""
    first, second = dice.choice([(b"id", b"kid"), (b"kid", b"payload"), (b"type", b"v")])
    fields[first], fields[second] = fields[first] + fields[second][:1], fields[second][1:]


def shortened(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    name = dice.choice(SIGNED)
    fields[name] = fields[name][: dice.randrange(len(fields[name]))]


def lengthened(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    fields[dice.choice(SIGNED)] += dice.choice([b"\x00", b" ", b"=", b"\n", b"A"])


def without_field(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    del fields[dice.choice(SIGNED)]


def signed_by_a_stranger(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    kid = dice.choice(["k1", "k2", "k3"])
    fields |= encode_entry(packet(1), Keyring({kid: FOREIGN}), event_id=fields[b"id"].decode())


def guessed_signature(dice: random.Random, fields: EntryFields, _: EntryFields) -> None:
    fields[b"signature"] = base64.b64encode(dice.randbytes(32))


FORGERIES = [
    altered_byte,
    swapped_field,
    shifted_boundary,
    shortened,
    lengthened,
    without_field,
    signed_by_a_stranger,
    guessed_signature,
]


def test_no_forgery_is_accepted() -> None:
    dice = random.Random(SEED)
    genuine = [encode_entry(packet(step), Keyring({"k1": OLD})) for step in range(50)]
    genuine += [encode_entry(packet(step), OURS) for step in range(50, 100)]
    assert all(accepted(fields) for fields in genuine)
    cases = 0
    while cases < CASES:
        original, other = dice.sample(genuine, 2)
        fields = dict(original)
        dice.choice(FORGERIES)(dice, fields, other)
        if fields == original:
            continue
        assert not accepted(fields), fields
        cases += 1


def test_a_key_is_rotated_without_refusing_anything_genuine() -> None:
    """The order of docs/security.md: readers learn the new key, then writers use it, then the old one goes."""
    before, during, after = Keyring({"k1": OLD}), OURS, Keyring({"k2": NEW})
    old_entry, new_entry = encode_entry(packet(1), before), encode_entry(packet(2), during)
    assert new_entry[b"kid"] == b"k2"
    assert accepted(old_entry, before)
    assert accepted(old_entry, during)
    assert accepted(new_entry, during)
    assert accepted(new_entry, after)
    for fields, keyring in ((old_entry, after), (new_entry, before)):
        with pytest.raises(UnknownKey):
            decode_entry(fields, keyring)


def test_a_key_id_reused_for_another_secret_verifies_nothing_signed_before() -> None:
    with pytest.raises(SignatureInvalid):
        decode_entry(encode_entry(packet(1), Keyring({"k1": OLD})), Keyring({"k1": NEW}))
