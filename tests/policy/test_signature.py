"""The command's own signature."""

from __future__ import annotations

import msgspec
import pytest

from schemas.catalogue import MESSAGES
from schemas.codec import decode_payload, encode_payload
from schemas.errors import SignatureInvalid, SignatureMissing
from schemas.signing import Keyring
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.signature import sign_command, verify_command
from tests.policy.samples import STAMP, facts, preferring

KEYRING = Keyring({"k1": b"secret"})


@pytest.fixture
def command():
    return decide(facts(), preferring(1), STAMP).command


def test_a_signed_command_verifies_after_its_journey_over_the_wire(command) -> None:
    sent = encode_payload(sign_command(command, KEYRING))
    received = decode_payload(MESSAGES["AdaptationCommand"], sent)
    verify_command(received, KEYRING)


def test_the_signature_is_the_last_annotation(command) -> None:
    assert list(sign_command(command, KEYRING).annotations)[-1] == "signature"


def test_any_change_after_signing_is_noticed(command) -> None:
    signed = sign_command(command, KEYRING)
    with pytest.raises(SignatureInvalid):
        verify_command(msgspec.structs.replace(signed, global_step=10), KEYRING)
    annotations = {**signed.annotations, "risk_reason": "policy_changed"}
    with pytest.raises(SignatureInvalid):
        verify_command(msgspec.structs.replace(signed, annotations=annotations), KEYRING)


def test_an_unsigned_command_does_not_verify(command) -> None:
    with pytest.raises(SignatureMissing):
        verify_command(msgspec.structs.replace(command, annotations={"signature_kid": "k1"}), KEYRING)


def test_without_keys_the_command_stays_unsigned(command) -> None:
    assert "signature" not in sign_command(command, None).annotations
