"""The panel's live stream: server-sent events, one tick at a time.

What all viewers see alike is encoded once per tick; each viewer has its own place in decisions and history. A tick
costs the decision path nothing but the time to encode it, and none is encoded while nobody looks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator

import anyio
import msgspec

from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.panel_state import Shown
from tamiyo_stream.hub.panel_view import (
    Document,
    decision_document,
    history_document,
    picture_document,
    state_document,
)

TICK_S = 0.5
MAX_VIEWERS = 16
#: Decisions sent per run and tick; beyond them the newest are sent and the rest are counted.
PER_RUN = 4
#: Decisions sent to a viewer that has just come.
AT_FIRST = 60
#: A browser tries again after this long without a stream, in ms.
RETRY_MS = 1000


class TooManyViewers(RuntimeError):
    """As many viewers as are allowed are watching already."""


class PanelStream:
    """Serves the viewers of one worker's panel.

    Args:
        closing: set when the worker stops; every stream ends then.
    """

    def __init__(self, state: HubState, closing: anyio.Event, *, tick_s: float = TICK_S) -> None:
        self._state = state
        self._closing = closing
        self._tick_s = tick_s
        self._encoded = b""
        self._encoded_at = float("-inf")
        self._viewers = 0

    @property
    def viewers(self) -> int:
        """Streams open now."""
        return self._viewers

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of one viewer until it leaves or the worker stops.

        Raises:
            TooManyViewers: before the first event.
        """
        if self._viewers >= MAX_VIEWERS:
            raise TooManyViewers(f"{MAX_VIEWERS} viewers are watching; close one")
        self._viewers += 1
        try:
            viewer = _Viewer(self._state)
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._closing.is_set():
                yield self._shared() + viewer.news()
                with anyio.move_on_after(self._tick_s):
                    await self._closing.wait()
            yield _event("bye", {})
        finally:
            self._viewers -= 1

    def _shared(self) -> bytes:
        now = time.monotonic()
        if now - self._encoded_at >= self._tick_s / 2:
            self._encoded = _event("state", state_document(self._state, time.time_ns()))
            self._encoded_at = now
        return self._encoded


class _Viewer:
    """One viewer's place in what grows: decisions, history, pictures."""

    def __init__(self, state: HubState) -> None:
        self._panel = state.panel
        self._decision = 0
        self._second: dict[str, int] = {}
        self._pictures: dict[str, str] = {}

    def news(self) -> bytes:
        """Return the events that this viewer has not seen."""
        return b"".join((*self._new_pictures(), self._new_history(), self._new_decisions()))

    def _new_pictures(self) -> list[bytes]:
        events = list[bytes]()
        for run in self._panel.runs():
            picture = run.picture()
            if picture is not None and self._pictures.get(run.run_id) != picture.blueprint_version:
                self._pictures[run.run_id] = picture.blueprint_version
                events.append(_event("picture", picture_document(run.run_id, picture)))
        return events

    def _new_history(self) -> bytes:
        rows: Document = {}
        for run in self._panel.runs():
            known = self._second.get(run.run_id, -1)
            # The newest second is still growing: it is sent again with the next tick.
            bins = [one for one in run.history if one.second >= known]
            if bins:
                self._second[run.run_id] = bins[-1].second
                rows[run.run_id] = history_document(bins)
        return _event("history", rows) if rows else b""

    def _new_decisions(self) -> bytes:
        first = self._decision == 0
        sent, skipped, per_run = list[Shown](), 0, Counter[str]()
        for shown in self._panel.decisions_after(self._decision):
            per_run[shown.command.run_id] += 1
            if per_run[shown.command.run_id] <= (AT_FIRST if first else PER_RUN):
                sent.append(shown)
            else:
                skipped += 1
        self._decision = self._panel.newest
        if not sent:
            return b""
        documents = [decision_document(shown) for shown in reversed(sent)]
        return _event("decisions", {"decisions": documents, "skipped": 0 if first else skipped})


def _event(name: str, document: Document) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(document) + b"\n\n"
