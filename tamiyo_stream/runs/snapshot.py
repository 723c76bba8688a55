"""The saved form of a run's state: msgpack, versioned, a few kilobytes (design §5)."""

from __future__ import annotations

import msgspec

from tamiyo_stream.runs.state import RunState

SNAPSHOT_VERSION = 1
#: A state is kilobytes; more is not ours.
MAX_BYTES = 4 * 1024 * 1024


class SnapshotUnreadable(ValueError):
    """A saved state cannot be read; the text says why and what to do."""


class _Snapshot(msgspec.Struct):
    version: int
    run: RunState


def encode_snapshot(run: RunState) -> bytes:
    """Return ``run`` as bytes; equal states give equal bytes."""
    return msgspec.msgpack.encode(_Snapshot(SNAPSHOT_VERSION, run))


def decode_snapshot(payload: bytes) -> RunState:
    """Return the run saved as ``payload``.

    Raises:
        SnapshotUnreadable: too large, damaged, or of another version.
    """
    if len(payload) > MAX_BYTES:
        raise SnapshotUnreadable(f"saved state is {len(payload)} bytes, limit {MAX_BYTES}; delete the key")
    try:
        snapshot = msgspec.msgpack.decode(payload, type=_Snapshot)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SnapshotUnreadable(f"saved state is damaged ({error}); delete the key to start afresh") from None
    if snapshot.version != SNAPSHOT_VERSION:
        raise SnapshotUnreadable(
            f"saved state has version {snapshot.version}, this build reads {SNAPSHOT_VERSION}; "
            "run the matching release or delete the key"
        )
    return snapshot.run
