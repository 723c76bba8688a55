"""The command's own signature, and the check an executor makes before it acts (``domain.md`` §3.5).

The signature is inside the command, so it stays when the entry that carried it is gone. The acceptance checks keep
the documented order with one exception: a nonce is *looked up* where the order says, but *consumed* only when all
checks have passed. A refused command had no effect, so nothing has to be protected from its return; consumed
early, a command refused for a clock that ran ahead could never be accepted, and stale ones would fill the ledger.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum

import msgspec

from schemas.codec import canonical_payload
from schemas.errors import EntryError
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand

SIGNATURE = "signature"
KEY_ID = "signature_kid"
NS_PER_MS = 1_000_000
#: A command older than this is not executed, whatever its own deadline says.
FRESHNESS_MS = 60_000
#: How far the issuer's clock may run ahead of the executor's.
FUTURE_SKEW_MS = 5_000
#: How long a nonce is remembered; far beyond freshness and skew, so no command outlives the memory of it.
NONCE_TTL_S = 300.0
MAX_NONCES = 65_536


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


class CommandRefusal(StrEnum):
    """Why a command must not be executed. The values are the reasons of ``command_rejected`` events."""

    MISSING_SIGNATURE = "missing_signature"
    INVALID_SIGNATURE = "invalid_signature"
    UNKNOWN_KEY = "unknown_key"
    MISSING_COMMAND_ID = "missing_command_id"
    NONCE_REPLAYED = "nonce_replayed"
    ISSUED_IN_FUTURE = "issued_in_future"
    MISSING_TIMESTAMP = "missing_timestamp"
    STALE_COMMAND = "stale_command"
    NONCE_LEDGER_FULL = "nonce_ledger_full"


class NonceLedger:
    """Command ids that were accepted, for :data:`NONCE_TTL_S` of a monotonic clock; bounded.

    A full ledger forgets nothing that could still be replayed: it refuses instead.
    """

    def __init__(self, *, ttl_s: float = NONCE_TTL_S, capacity: int = MAX_NONCES) -> None:
        if ttl_s <= 0 or capacity < 1:
            raise ValueError(f"ttl_s {ttl_s} and capacity {capacity} must be above 0")
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._accepted_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accepted_at)

    def __contains__(self, nonce: object) -> bool:
        return nonce in self._accepted_at

    def forget_expired(self, now_s: float) -> None:
        """Drop the nonces accepted ``ttl_s`` or longer before ``now_s`` (monotonic seconds)."""
        while self._accepted_at and now_s - next(iter(self._accepted_at.values())) >= self._ttl_s:
            self._accepted_at.popitem(last=False)

    def consume(self, nonce: str, now_s: float) -> bool:
        """Remember ``nonce``; return False, remembering nothing, where the ledger is full."""
        if len(self._accepted_at) >= self._capacity:
            return False
        self._accepted_at[nonce] = now_s
        return True


class CommandVerifier:
    """Accepts each fresh, authentic command once.

    Args:
        keyring: verifies signatures; None accepts unsigned commands (a bus without keys).
        ledger: remembers what was accepted.
        freshness_ms: age above which a command is stale; its ``execution_deadline_ms`` counts where it is shorter.
        future_skew_ms: how far in the future ``issued_at`` may lie.
    """

    def __init__(
        self,
        keyring: Keyring | None,
        *,
        ledger: NonceLedger | None = None,
        freshness_ms: int = FRESHNESS_MS,
        future_skew_ms: int = FUTURE_SKEW_MS,
    ) -> None:
        self._keyring = keyring
        self._ledger = ledger if ledger is not None else NonceLedger()
        self._freshness_ms = freshness_ms
        self._future_skew_ms = future_skew_ms

    def check(self, command: AdaptationCommand, *, now_ns: int, monotonic_s: float) -> CommandRefusal | None:
        """Return why ``command`` must not be executed, or None: then its nonce is used up.

        Args:
            command: as received.
            now_ns: Unix time, for freshness.
            monotonic_s: a clock that is never set, for the nonce's memory.
        """
        self._ledger.forget_expired(monotonic_s)
        refusal = self._authenticity(command) or self._novelty(command) or self._freshness(command, now_ns)
        if refusal is not None:
            return refusal
        consumed = self._ledger.consume(command.command_id, monotonic_s)
        return None if consumed else CommandRefusal.NONCE_LEDGER_FULL

    def _authenticity(self, command: AdaptationCommand) -> CommandRefusal | None:
        if self._keyring is None:
            return None
        try:
            verify_command(command, self._keyring)
        except EntryError as error:
            known = error.reason in set(CommandRefusal)
            return CommandRefusal(error.reason) if known else CommandRefusal.INVALID_SIGNATURE
        return None

    def _novelty(self, command: AdaptationCommand) -> CommandRefusal | None:
        if not command.command_id:
            return CommandRefusal.MISSING_COMMAND_ID
        return CommandRefusal.NONCE_REPLAYED if command.command_id in self._ledger else None

    def _freshness(self, command: AdaptationCommand, now_ns: int) -> CommandRefusal | None:
        age_ms = (now_ns - command.issued_at) / NS_PER_MS
        if command.issued_at <= 0:
            return CommandRefusal.MISSING_TIMESTAMP
        if age_ms < -self._future_skew_ms:
            return CommandRefusal.ISSUED_IN_FUTURE
        return CommandRefusal.STALE_COMMAND if age_ms > self._longest_life(command) else None

    def _longest_life(self, command: AdaptationCommand) -> int:
        own = command.execution_deadline_ms
        return min(own, self._freshness_ms) if own > 0 else self._freshness_ms


def _annotated(command: AdaptationCommand, name: str, value: str) -> AdaptationCommand:
    return msgspec.structs.replace(command, annotations={**command.annotations, name: value})
