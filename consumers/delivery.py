"""What the readers hand on: one entry as it lies in Redis, not yet verified or decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.catalogue import Stream

#: redis-py's reply to XREADGROUP for one entry; a trimmed entry that is still pending has no fields.
RawEntry = tuple[bytes, Mapping[bytes, bytes] | None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered entry.

    Attributes:
        stream: role of the stream, ``key``: its Redis key.
        fields: raw fields; empty where the entry was trimmed while it was pending (its content is lost).
        claimed_at: ``time.monotonic()`` seconds when it reached us: the decision's deadline counts from here.
        redelivered: it was handed out before, to us or to a consumer that is gone.
        attempts: how often it was handed out, this time included. Outages and takeovers are no attempts: it grows
            only when a worker began on the entry and did not live to settle it.
        alone: it outlived several workers and may be what killed them: to be handled with nothing else in flight.
    """

    stream: Stream
    key: str
    entry_id: str
    fields: Mapping[bytes, bytes]
    claimed_at: float
    redelivered: bool = False
    attempts: int = 1
    alone: bool = False


def deliveries(stream: Stream, key: str, entries: list[RawEntry], claimed_at: float) -> list[Delivery]:
    """Return ``entries`` of ``key``, handed out for the first time, as deliveries in order."""
    return [
        Delivery(stream, key, entry_id.decode(), dict(fields or {}), claimed_at) for entry_id, fields in entries
    ]
