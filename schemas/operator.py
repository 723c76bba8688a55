"""What an operator tells Tamiyo: force a safety state, or give it back to its rules (design §9)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import Override
from schemas.record import Identifier, Message, TimestampNs, doc


class OperatorDirective(Message, frozen=True, kw_only=True):
    """An operator's word on one run or on all; absent fields leave their subject as it is. The newest counts.

    Raises:
        ValueError: nothing is directed.
    """

    issued_at: TimestampNs
    issued_by: Annotated[Identifier, doc("Who said it, for the record")]
    run_id: Annotated[str | None, doc("Run concerned; absent = all")] = None
    conservative: Annotated[Override | None, doc("Conservative mode: ON, OFF, or AUTO by its rules")] = None
    inference_breaker: Annotated[
        Override | None, doc("The network's breaker: ON = held closed (asked), OFF = held open (not asked), AUTO")
    ] = None
    reason: Annotated[str, doc("Why, for people")] = ""

    def __post_init__(self) -> None:
        if self.conservative is None and self.inference_breaker is None:
            raise ValueError("nothing is directed; give `conservative` or `inference_breaker`")
