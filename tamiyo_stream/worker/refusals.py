"""What becomes of an entry that cannot be used: it goes whole into the dead letter, with its reason."""

from __future__ import annotations

import uuid

import structlog

from consumers.delivery import Delivery
from producers.commit import Output
from producers.dead_letter import dead_letter_fields
from schemas.catalogue import Stream
from schemas.errors import EntryError
from tamiyo_stream.settings import Settings

#: Reason where not the entry but our handling of it failed.
INTERNAL_ERROR = "internal_error"
#: Reason where Redis trimmed the entry while it was pending: its content is lost.
TRIMMED = "trimmed_while_pending"
#: Reason where workers began on the entry again and again and none lived to settle it.
DELIVERY_CAP = "delivery_cap"

log = structlog.get_logger("tamiyo.intake")


def dead_letter(
    delivery: Delivery, settings: Settings, *, reason: str, detail: str, deliveries: int = 1
) -> Output:
    """Return the dead-letter entry for ``delivery``, handed out ``deliveries`` times, and say so in the log."""
    log.warning("entry_refused", stream=delivery.key, entry_id=delivery.entry_id, reason=reason, detail=detail)
    fields = dead_letter_fields(
        delivery.fields,
        reason=reason,
        detail=detail,
        stream=delivery.key,
        entry_id=delivery.entry_id,
        deliveries=deliveries,
    )
    return Output(settings.key(Stream.DEAD_LETTER), fields, settings.dead_letter_maxlen)


def reason_of(error: Exception) -> str:
    """Return the reason code of ``error``."""
    return error.reason if isinstance(error, EntryError) else INTERNAL_ERROR


def new_id() -> str:
    """Return a fresh UUID."""
    return str(uuid.uuid4())
