"""The signature beside a checkpoint file, ``<file>.sig``: a file from elsewhere is not opened.

HMAC-SHA256 over a domain tag, the policy version and the file's SHA-256. On the bus the entry's own signature
covers the announced SHA-256, and no sidecar is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import EntryError
from schemas.signing import Keyring
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason

_DOMAIN = b"tamiyo.checkpoint.v1"
_FIELDS = ("kid", "policy_version", "sha256", "signature")
MAX_SIGNATURE_BYTES = 4096


def signature_path(path: Path) -> Path:
    """Return where the signature of the file at ``path`` is kept."""
    return path.with_name(path.name + ".sig")


def sign_checkpoint(keyring: Keyring, policy_version: str, sha256: str) -> str:
    """Return the sidecar's text for a file with this digest."""
    kid = keyring.signing_kid
    signature = keyring.sign(kid, _parts(policy_version, sha256)).decode()
    return json.dumps(
        {"kid": kid, "policy_version": policy_version, "sha256": sha256, "signature": signature}, indent=1
    )


def check_signature(keyring: Keyring, signature: bytes | None, sha256: str) -> str:
    """Return the policy version that ``signature`` vouches for, with this digest.

    Raises:
        CheckpointRefused: ``missing_signature`` or ``invalid_signature``.
    """
    if signature is None:
        raise CheckpointRefused(
            Reason.MISSING_SIGNATURE,
            "a signing key is configured and the checkpoint has no .sig file; copy it along, or write the "
            "checkpoint again with the key",
        )
    found = _parse(signature)
    if found["sha256"] != sha256:
        raise _invalid(f"it is of a file with SHA-256 {found['sha256'][:64]}, this one has {sha256}")
    try:
        parts = _parts(found["policy_version"], sha256)
        keyring.verify(found["kid"], parts, found["signature"].encode())
    except (EntryError, UnicodeEncodeError) as error:
        raise _invalid(str(error)) from None
    return str(found["policy_version"])


def check_signed_version(signed: str, policy_version: str) -> None:
    """Refuse a file whose signature was made for another policy version (``invalid_signature``)."""
    if signed != policy_version:
        raise _invalid(f"it is of policy version {signed[:200]!r}, the file holds {policy_version!r}")


def _parts(policy_version: str, sha256: str) -> list[bytes]:
    return [_DOMAIN, policy_version.encode(), sha256.encode()]


def _parse(signature: bytes) -> dict[str, Any]:
    try:
        found = json.loads(signature[:MAX_SIGNATURE_BYTES])
    except (ValueError, RecursionError):
        raise _invalid("it is no JSON") from None
    if not isinstance(found, dict) or not all(type(found.get(name)) is str for name in _FIELDS):
        raise _invalid(f"it has not the text fields {', '.join(_FIELDS)}")
    return found


def _invalid(detail: str) -> CheckpointRefused:
    return CheckpointRefused(
        Reason.INVALID_SIGNATURE, f"the checkpoint's signature is not valid: {detail}; take both from their writer"
    )
