"""Why an entry was refused: one exception type per way of failing that a caller can act on.

Every error carries a ``reason`` code (stable, used for dead letters and metrics), and where known the
``field`` concerned. Messages name the field, the value and the fix.
"""

from __future__ import annotations


class EntryError(ValueError):
    """An entry that must not be decided upon. Goes to the dead letter with its ``reason``."""

    reason = "invalid_entry"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class MalformedEntry(EntryError):
    """A required entry field is absent or not readable."""

    reason = "malformed_entry"


class UnknownType(EntryError):
    """The entry's ``type`` names no message of this schema, or one that its stream does not carry."""

    reason = "unknown_type"


class UnsupportedVersion(EntryError):
    """The entry's schema version is not one this build reads."""

    reason = "unsupported_version"


class OversizedEntry(EntryError):
    """The payload is larger than its message type allows; it was not decoded."""

    reason = "oversized_entry"


class SignatureMissing(EntryError):
    """A secret is configured and the entry is unsigned; it was not decoded."""

    reason = "missing_signature"


class SignatureInvalid(EntryError):
    """The signature does not match the entry; it was not decoded."""

    reason = "invalid_signature"


class UnknownKey(EntryError):
    """The entry names a key id that is not active here; it was not decoded."""

    reason = "unknown_key"


class UndecodablePayload(EntryError):
    """The payload is not msgpack: truncated, trailing bytes, or an extension type."""

    reason = "undecodable_payload"


class LimitExceeded(EntryError):
    """The payload claims more elements, bytes or nesting than its message type allows."""

    reason = "limit_exceeded"


class InvalidPayload(EntryError):
    """The payload is msgpack but not this message: the text names the path, as ``$.layers.loss``."""

    reason = "invalid_payload"
