"""The dead letter: what could not be used, whole, with the reason (design §4)."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.entry import EntryFields

#: Prefix of the fields that are added to the original ones.
PREFIX = b"dead_letter_"
MAX_DETAIL_BYTES = 1024


def dead_letter_fields(
    original: Mapping[bytes, bytes], *, reason: str, detail: str, stream: str, entry_id: str, deliveries: int
) -> EntryFields:
    """Return the fields of the dead-letter entry for ``original``.

    Its own fields, then why, from which stream, which entry, and how often it had been delivered.
    """
    return {
        **original,
        PREFIX + b"reason": reason.encode(),
        PREFIX + b"detail": detail.encode()[:MAX_DETAIL_BYTES],
        PREFIX + b"stream": stream.encode(),
        PREFIX + b"entry_id": entry_id.encode(),
        PREFIX + b"deliveries": str(deliveries).encode(),
    }
