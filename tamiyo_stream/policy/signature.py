"""The command's own signature: it stays with the command when its entry is gone (domain.md §3.5)."""

from __future__ import annotations

import msgspec

from schemas.codec import canonical_payload
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand

SIGNATURE = "signature"
KEY_ID = "signature_kid"


def sign_command(command: AdaptationCommand, keyring: Keyring | None) -> AdaptationCommand:
    """Return ``command`` with its signature as the last annotation; unchanged without keys."""
    if keyring is None:
        return command
    named = _annotated(command, KEY_ID, keyring.signing_kid)
    signature = keyring.sign(keyring.signing_kid, [canonical_payload(named)])
    return _annotated(named, SIGNATURE, signature.decode())


def verify_command(command: AdaptationCommand, keyring: Keyring) -> None:
    """Check the command's signature.

    Raises:
        EntryError: SignatureMissing, UnknownKey or SignatureInvalid.
    """
    annotations = dict(command.annotations)
    signature = annotations.pop(SIGNATURE, "").encode()
    unsigned = msgspec.structs.replace(command, annotations=annotations)
    keyring.verify(annotations.get(KEY_ID, ""), [canonical_payload(unsigned)], signature)


def _annotated(command: AdaptationCommand, name: str, value: str) -> AdaptationCommand:
    return msgspec.structs.replace(command, annotations={**command.annotations, name: value})
