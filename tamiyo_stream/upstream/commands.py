"""Receiving Tamiyo's commands in a training process, without ever waiting for them.

A daemon thread reads the commands stream from the moment the inbox was made, keeps what is addressed to its run,
and hands it over when the training loop asks. Two copies of one command (a worker that died between commit and
acknowledgement cannot produce them, an operator's replay can) are handed over once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.partitions import stream_key
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.upstream.connection import Outage, log, open_client

#: How long one read waits; also the longest that `close` waits for the thread.
BLOCK_MS = 500
#: Above BLOCK_MS: a read that got no answer by then is a dead connection, not a quiet stream.
ANSWER_TIMEOUT_S = 5.0
READ_COUNT = 64
#: Newest command ids remembered; far more than a replay or a redelivery spans.
REMEMBERED_IDS = 4096
DEFAULT_CAPACITY = 1024


@dataclass(frozen=True, slots=True)
class ReceivedCommand:
    """A verified command, when it arrived (``time.monotonic_ns``) and its id in the stream."""

    command: AdaptationCommand
    received_at_ns: int
    entry_id: str


@dataclass(frozen=True, slots=True)
class InboxStatistics:
    """Counts of one inbox since it was made.

    ``foreign``: addressed to other runs; ``refused``: unsigned, badly signed or not a command; ``duplicate``: seen
    before; ``dropped``: pushed out because nobody called ``receive``.
    """

    received: int
    waiting: int
    foreign: int
    refused: int
    duplicate: int
    dropped: int
    retries: int
    connected: bool
    last_error: str | None


class CommandInbox:
    """Collects the commands for one run.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        run_id: the run whose commands are kept.
        keyring: verifies entries; None accepts unsigned ones.
        stream_name: other name of the commands stream.
        capacity: commands held until ``receive``; then the oldest leave, counted.

    Raises:
        RedisUrlInvalid: ``redis_url`` cannot be read. Redis being away raises nothing.
    """

    def __init__(
        self,
        redis_url: str,
        run_id: str,
        keyring: Keyring | None = None,
        *,
        stream_name: str | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        self._client = open_client(redis_url, answer_timeout_s=ANSWER_TIMEOUT_S)
        self._run_id = run_id
        self._keyring = keyring
        self._key = stream_key(Stream.COMMANDS, name=stream_name)
        self._created_at_ns = time.monotonic_ns()
        self._position: str | None = None
        self._commands: deque[ReceivedCommand] = deque(maxlen=capacity)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._counts = dict.fromkeys(("received", "foreign", "refused", "duplicate", "dropped"), 0)
        self._outage = Outage("command inbox")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tamiyo-commands", daemon=True)
        self._thread.start()

    def receive(self) -> list[ReceivedCommand]:
        """Return the commands that arrived since the last call, oldest first. Never waits, never raises."""
        received: list[ReceivedCommand] = []
        while self._commands:
            received.append(self._commands.popleft())
        return received

    def close(self) -> None:
        """Stop the thread. Commands that already arrived can still be received."""
        self._closed.set()
        self._thread.join(ANSWER_TIMEOUT_S)
        self._client.close()

    def statistics(self) -> InboxStatistics:
        """Return the counts so far."""
        return InboxStatistics(
            **self._counts,
            waiting=len(self._commands),
            retries=self._outage.failures,
            connected=self._outage.connected,
            last_error=self._outage.last_error,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
            except (redis.RedisError, OSError) as error:
                self._closed.wait(self._outage.failed(error))
            else:
                self._outage.succeeded()

    def _read(self) -> None:
        if self._position is None:
            self._position = self._position_at_creation()
        reply = cast("Any", self._client.xread({self._key: self._position}, count=READ_COUNT, block=BLOCK_MS))
        for _, entries in _by_stream(reply):
            for entry_id, fields in entries:
                self._take(entry_id.decode(), fields)
                self._position = entry_id.decode()

    def _position_at_creation(self) -> str:
        """Return the stream position that belongs to the inbox's creation, by the clock of Redis.

        Redis may have been away then, so its newest entry of today says nothing; stream ids are its milliseconds.
        The age is taken after the answer, which may have included connecting, and rounded up: rather a command
        from a moment before the inbox was made than one from a moment after it left out.
        """
        seconds, microseconds = self._client.time()
        age_ms = (time.monotonic_ns() - self._created_at_ns) // 1_000_000 + 1
        return f"{seconds * 1000 + microseconds // 1000 - age_ms - 1}-0"

    def _take(self, entry_id: str, fields: Mapping[bytes, bytes]) -> None:
        received_at_ns = time.monotonic_ns()
        try:
            message = decode_entry(fields, self._keyring, stream=Stream.COMMANDS).message
        except EntryError as error:
            self._counts["refused"] += 1
            if self._counts["refused"] == 1:
                log.warning("command inbox refused entry %s (%s): %s", entry_id, error.reason, error)
            return
        if not isinstance(message, AdaptationCommand) or message.run_id != self._run_id:
            self._counts["foreign"] += 1
        elif message.command_id in self._seen:
            self._counts["duplicate"] += 1
        else:
            self._remember(message.command_id)
            self._counts["received"] += 1
            self._counts["dropped"] += len(self._commands) == self._commands.maxlen
            self._commands.append(ReceivedCommand(message, received_at_ns, entry_id))

    def _remember(self, command_id: str) -> None:
        self._seen[command_id] = None
        if len(self._seen) > REMEMBERED_IDS:
            self._seen.popitem(last=False)


def _by_stream(reply: Any) -> list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    """Return XREAD's answer as pairs: RESP2 sends such a list, RESP3 a map with one more list around entries."""
    if isinstance(reply, dict):
        return [(key, batches[0] if batches else []) for key, batches in reply.items()]
    return reply or []
