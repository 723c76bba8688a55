"""A run recorded from a whole worker, and recordings made by hand."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
from anyio import to_thread

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.enums import CommandType
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.replay.recorder import record_run
from tamiyo_stream.replay.recording import Header, RecordedEntry, Recording, VerifiedRecording
from tamiyo_stream.worker.connection import open_blocking_client
from tests.worker.conftest import engine, settings, upstream, worker

__all__ = ["engine", "settings", "upstream", "worker"]

KEYRING = Keyring({"k1": b"a secret of the tests"})


@pytest.fixture
def recorded(settings) -> Callable[..., Awaitable[VerifiedRecording]]:
    """Record the run named ``run`` from the bus."""

    def record(**bounds: str) -> VerifiedRecording:
        with open_blocking_client(settings) as client:
            return VerifiedRecording.of(record_run(client, settings, "run", **bounds), settings.keyring)

    async def on_a_thread(**bounds: str) -> VerifiedRecording:
        return await to_thread.run_sync(lambda: record(**bounds))

    return on_a_thread


def entry(stream: Stream, at_ms: int, message: Message, *, number: int = 0, event_id: str = "") -> RecordedEntry:
    fields = encode_entry(message, KEYRING, event_id=event_id or f"{stream}-{at_ms}-{number}")
    return RecordedEntry(stream, f"{at_ms}-{number}", fields)


def recording_of(*entries: RecordedEntry, **header) -> Recording:
    return Recording(Header(run_id="run", settings={}, registries={}, **header), list(entries))


def verified(*entries: RecordedEntry) -> VerifiedRecording:
    return VerifiedRecording.of(recording_of(*entries), KEYRING)


def answer(
    step: int,
    *,
    claimed_ms: int,
    took_ms: float = 5.0,
    superseded: tuple[int, ...] = (),
    rules: tuple[dict[str, object], ...] = (),
    **annotations: str,
) -> AdaptationCommand:
    """Return the PAUSE on ``run-<step>`` whose packet was claimed at ``claimed_ms``."""
    return AdaptationCommand(
        command_id=f"c{step}",
        command_type=CommandType.PAUSE,
        execution_deadline_ms=1,
        issued_at=int((claimed_ms + took_ms) * 1_000_000),
        run_id="run",
        packet_id=f"run-{step}",
        global_step=step,
        superseded_packet_ids=[f"run-{number}" for number in superseded],
        annotations={
            "decision_latency_ms": f"{took_ms:.3f}",
            "why": json.dumps({"rules": list(rules)}),
            **annotations,
        },
    )
