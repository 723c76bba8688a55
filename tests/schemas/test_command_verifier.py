"""What an executor checks before it acts: authentic, new, fresh, in this order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.command_verifier import (
    FRESHNESS_MS,
    FUTURE_SKEW_MS,
    NONCE_TTL_S,
    CommandRefusal,
    CommandVerifier,
    NonceLedger,
    sign_command,
)
from schemas.enums import CommandType
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand

KEYRING = Keyring({"k1": b"secret"})
MS = 1_000_000
NOW = 1_700_000_000_000 * MS


def command(**given) -> AdaptationCommand:
    values = {
        "command_id": "c1",
        "command_type": CommandType.PAUSE,
        "execution_deadline_ms": 60_000,
        "issued_at": NOW,
        "run_id": "r",
        "packet_id": "p",
        "global_step": 1,
    }
    return AdaptationCommand(**{**values, **given})


def signed(**given) -> AdaptationCommand:
    return sign_command(command(**given), KEYRING)


def check(verifier: CommandVerifier, candidate: AdaptationCommand, *, now_ns: int = NOW, monotonic_s: float = 0.0):
    return verifier.check(candidate, now_ns=now_ns, monotonic_s=monotonic_s)


@pytest.fixture
def verifier() -> CommandVerifier:
    return CommandVerifier(KEYRING)


def test_a_signed_fresh_new_command_is_accepted_once(verifier) -> None:
    assert check(verifier, signed()) is None
    assert check(verifier, signed()) is CommandRefusal.NONCE_REPLAYED


def test_an_unsigned_command_is_refused(verifier) -> None:
    unsigned = command(annotations={"signature_kid": "k1"})
    assert check(verifier, unsigned) is CommandRefusal.MISSING_SIGNATURE
    assert check(verifier, command()) is CommandRefusal.MISSING_SIGNATURE


def test_a_changed_command_is_refused(verifier) -> None:
    changed = msgspec.structs.replace(signed(), global_step=2)
    assert check(verifier, changed) is CommandRefusal.INVALID_SIGNATURE


def test_a_command_under_a_foreign_key_is_refused(verifier) -> None:
    foreign = sign_command(command(), Keyring({"k9": b"other"}))
    assert check(verifier, foreign) is CommandRefusal.UNKNOWN_KEY


def test_a_command_without_id_is_refused() -> None:
    assert check(CommandVerifier(None), command(command_id="")) is CommandRefusal.MISSING_COMMAND_ID


def test_without_keys_an_unsigned_command_is_accepted_once() -> None:
    verifier = CommandVerifier(None)
    assert check(verifier, command()) is None
    assert check(verifier, command()) is CommandRefusal.NONCE_REPLAYED


@pytest.mark.parametrize(
    ("age_ms", "refusal"),
    [
        (-FUTURE_SKEW_MS, None),
        (-FUTURE_SKEW_MS - 1, CommandRefusal.ISSUED_IN_FUTURE),
        (FRESHNESS_MS, None),
        (FRESHNESS_MS + 1, CommandRefusal.STALE_COMMAND),
    ],
)
def test_freshness_has_exact_bounds(verifier, age_ms, refusal) -> None:
    assert check(verifier, signed(), now_ns=NOW + age_ms * MS) is refusal


def test_the_commands_own_deadline_counts_where_it_is_shorter(verifier) -> None:
    short = signed(execution_deadline_ms=100)
    assert check(verifier, short, now_ns=NOW + 101 * MS) is CommandRefusal.STALE_COMMAND
    assert check(verifier, short, now_ns=NOW + 100 * MS) is None
    long = signed(command_id="c2", execution_deadline_ms=10 * FRESHNESS_MS)
    assert check(verifier, long, now_ns=NOW + (FRESHNESS_MS + 1) * MS) is CommandRefusal.STALE_COMMAND


def test_a_command_without_timestamp_is_refused(verifier) -> None:
    assert check(verifier, signed(issued_at=0)) is CommandRefusal.MISSING_TIMESTAMP


def test_a_command_refused_for_the_clock_may_come_again(verifier) -> None:
    early = NOW - (FUTURE_SKEW_MS + 1) * MS
    assert check(verifier, signed(), now_ns=early) is CommandRefusal.ISSUED_IN_FUTURE
    assert check(verifier, signed()) is None


def test_a_replay_is_named_before_its_age(verifier) -> None:
    assert check(verifier, signed()) is None
    late = NOW + (FRESHNESS_MS + 1) * MS
    assert check(verifier, signed(), now_ns=late) is CommandRefusal.NONCE_REPLAYED


def test_a_forged_copy_does_not_use_up_the_nonce(verifier) -> None:
    forged = msgspec.structs.replace(signed(), target_seed_id="s")
    assert check(verifier, forged) is CommandRefusal.INVALID_SIGNATURE
    assert check(verifier, signed()) is None


def test_a_nonce_is_forgotten_after_its_time_to_live_and_age_refuses_the_replay(verifier) -> None:
    assert check(verifier, signed(), monotonic_s=10.0) is None
    for seconds, refusal in ((NONCE_TTL_S - 1, "nonce_replayed"), (NONCE_TTL_S, "stale_command")):
        later = NOW + int(seconds * 1000) * MS
        assert check(verifier, signed(), now_ns=later, monotonic_s=10.0 + seconds) == refusal


def test_a_full_ledger_refuses_rather_than_forgets() -> None:
    verifier = CommandVerifier(KEYRING, ledger=NonceLedger(capacity=2))
    assert [check(verifier, signed(command_id=f"c{i}")) for i in range(3)] == [
        None,
        None,
        CommandRefusal.NONCE_LEDGER_FULL,
    ]
    assert check(verifier, signed(command_id="c0")) is CommandRefusal.NONCE_REPLAYED


@pytest.mark.parametrize("given", [{"ttl_s": 0.0}, {"capacity": 0}])
def test_a_ledger_that_could_hold_nothing_is_refused(given) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        NonceLedger(**given)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 400)), max_size=40))
def test_no_command_is_ever_accepted_twice(arrivals) -> None:
    """Time runs on in steps of up to 400 s; the age limit takes over where the ledger forgets."""
    verifier, seconds = CommandVerifier(None, ledger=NonceLedger(capacity=4)), 0.0
    accepted: list[str] = []
    for number, pause in arrivals:
        seconds += pause
        name = f"c{number}"
        refusal = check(verifier, command(command_id=name), now_ns=NOW + int(seconds * 1e9), monotonic_s=seconds)
        if refusal is None:
            accepted.append(name)
    assert len(accepted) == len(set(accepted))
