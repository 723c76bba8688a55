"""The saved form of a run's state."""

from __future__ import annotations

import msgspec
import pytest

from schemas.kasmina import SeedState
from tamiyo_stream.runs.snapshot import MAX_BYTES, SnapshotUnreadable, decode_snapshot, encode_snapshot
from tamiyo_stream.runs.state import EwmaNorm, RunState, StepRecord


def full_run() -> RunState:
    return RunState(
        run_id="r",
        last_step=7,
        recent_ids=["a", "b"],
        history=[StepRecord(step=7, loss=0.5)],
        norms={"loss": EwmaNorm(0.8, 0.09, 3)},
        seeds={"s": SeedState(seed_id="s", alpha=0.25)},
        counters={"decided": 7},
    )


def test_a_run_comes_back_as_it_was_saved() -> None:
    saved = encode_snapshot(full_run())
    restored = decode_snapshot(saved)
    assert msgspec.to_builtins(restored) == msgspec.to_builtins(full_run())
    assert encode_snapshot(restored) == saved


def test_a_saved_state_of_another_version_is_named() -> None:
    payload = msgspec.msgpack.encode({"version": 99, "run": {"run_id": "r"}})
    with pytest.raises(SnapshotUnreadable, match="version 99"):
        decode_snapshot(payload)


@pytest.mark.parametrize("payload", [b"", b"\xc1", encode_snapshot(full_run())[:-3], b"\x80"])
def test_a_damaged_state_is_refused(payload: bytes) -> None:
    with pytest.raises(SnapshotUnreadable, match="delete the key"):
        decode_snapshot(payload)


def test_an_oversized_state_is_not_decoded() -> None:
    with pytest.raises(SnapshotUnreadable, match="limit"):
        decode_snapshot(b"\x00" * (MAX_BYTES + 1))
