"""HMAC-SHA256 signatures of entries and commands, with two keys active during rotation (design §4)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.errors import SignatureInvalid, SignatureMissing, UnknownKey

MAX_KEYS = 2


@dataclass(frozen=True, slots=True)
class Keyring:
    """Active signing keys by key id: the first signs, all verify. At most two, so that a key can be rotated.

    Raises:
        ValueError: no key, more than two, or an empty secret.
    """

    keys: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise ValueError(f"{len(self.keys)} signing keys given; configure one, or two while rotating")
        for kid, secret in self.keys.items():
            if not kid or not secret:
                raise ValueError(f"signing key {kid!r} is empty; give every key an id and a secret")

    @property
    def signing_kid(self) -> str:
        """Id of the key that new signatures use."""
        return next(iter(self.keys))

    def sign(self, kid: str, parts: Iterable[bytes]) -> bytes:
        """Return the base64 signature over ``parts``, each prefixed with its length.

        Raises:
            UnknownKey: ``kid`` is not active.
        """
        secret = self.keys.get(kid)
        if secret is None:
            raise UnknownKey(f"key id {kid!r} is not active; sign with one of {', '.join(self.keys)}", field="kid")
        mac = hmac.new(secret, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return base64.b64encode(mac.digest())

    def verify(self, kid: str, parts: Iterable[bytes], signature: bytes) -> None:
        """Check ``signature`` in constant time.

        Raises:
            SignatureMissing: the signature is empty.
            UnknownKey: ``kid`` is not active.
            SignatureInvalid: anything in ``parts`` or the signature was altered.
        """
        if not signature:
            raise SignatureMissing("entry is unsigned; sign it with an active key", field="signature")
        if not hmac.compare_digest(self.sign(kid, parts), signature):
            raise SignatureInvalid(
                f"signature does not match under key {kid!r}; sign the entry as sent, with that key's secret",
                field="signature",
            )
