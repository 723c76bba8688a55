"""Publishing from a training process: never in its way, never out of order, nothing lost while the queue has room.

A training loop must not wait for the bus, so messages go into a bounded queue and one daemon thread sends them,
one at a time and in order. An outage stops the thread at the message it could not send; newer ones wait behind it.

A reply that is lost on the way makes the thread send an entry again that Redis already has. Both carry the same
event id: the worker drops the second (design §5, ordering).
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import redis

from schemas.catalogue import Stream
from schemas.entry import EntryFields, encode_entry
from schemas.partitions import partition_of, stream_key
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.upstream.connection import Outage, log, open_client

ANSWER_TIMEOUT_S = 5.0
#: About an hour of steps at one per second; a packet of a hundred-layer model is a few kilobytes.
DEFAULT_CAPACITY = 4096


class Publisher(Protocol):
    """What an upstream component needs of a publisher; a list-backed one serves notebooks and tests."""

    def publish(self, stream: Stream, message: Message, *, keep_as: str = "") -> bool:
        """Take ``message`` for ``stream``; return whether it was taken. Must not raise or block."""
        ...


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """Counts of one publisher since it was made.

    ``queued`` includes the message being sent. ``dropped``: left out because the queue was full or closed;
    ``refused``: not encodable, see the log.
    """

    published: int
    queued: int
    dropped: int
    refused: int
    retries: int
    connected: bool
    last_error: str | None


@dataclass(frozen=True, slots=True)
class _Outgoing:
    key: str
    message: Message
    event_id: str
    keep_as: str


class StreamPublisher:
    """Sends messages to Oona from a background thread.

    When the queue is full the oldest *state packet* leaves, for the newest state is worth more; other messages
    never leave, and a message that finds no state packet to displace is dropped itself. Both are counted.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        keyring: signs entries; None sends them unsigned.
        partitions: of the ordered inputs, as the worker is configured.
        stream_names: other names for streams, as the worker is configured.
        capacity: messages the queue holds.

    Raises:
        RedisUrlInvalid: ``redis_url`` cannot be read. Redis being away raises nothing.
    """

    def __init__(
        self,
        redis_url: str,
        keyring: Keyring | None = None,
        *,
        partitions: int = 1,
        stream_names: Mapping[Stream, str] | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        self._client = open_client(redis_url, answer_timeout_s=ANSWER_TIMEOUT_S)
        self._keyring = keyring
        self._partitions = partitions
        self._stream_names = dict(stream_names or {})
        self._capacity = capacity
        self._queue: deque[_Outgoing] = deque()
        self._sending = False
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._outage = Outage("publisher")
        self._lost_contact = False
        self._kept: dict[str, tuple[str, EntryFields]] = {}
        self._published = self._dropped = self._refused = 0
        self._thread = threading.Thread(target=self._run, name="tamiyo-publisher", daemon=True)
        self._thread.start()

    def publish(self, stream: Stream, message: Message, *, keep_as: str = "") -> bool:
        """Queue ``message`` for ``stream``; return False where it was dropped. Never raises or waits for Redis.

        ``keep_as`` names a message that must survive a Redis that comes back empty: the newest one of each name is
        sent again after an outage, under the same event id.
        """
        outgoing = _Outgoing(self._key_of(stream, message), message, str(uuid.uuid4()), keep_as)
        with self._changed:
            if self._closed.is_set() or not self._make_room():
                self._dropped += 1
                return False
            self._queue.append(outgoing)
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued was sent; return False where ``timeout_s`` passed first."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued for up to ``timeout_s``, then stop the thread. A second call does nothing."""
        if self._closed.is_set():
            return
        self.flush(timeout_s)
        with self._changed:
            unsent = len(self._queue) + self._sending
            self._closed.set()
            self._changed.notify_all()
        self._thread.join(ANSWER_TIMEOUT_S)
        self._client.close()
        if unsent:
            log.warning("publisher closed with %d messages unsent: %s", unsent, self._outage.last_error)

    def statistics(self) -> PublisherStatistics:
        """Return the counts so far."""
        with self._changed:
            return PublisherStatistics(
                published=self._published,
                queued=len(self._queue) + self._sending,
                dropped=self._dropped,
                refused=self._refused,
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

    def _key_of(self, stream: Stream, message: Message) -> str:
        run_id = getattr(message, "run_id", None) or ""
        partition = partition_of(run_id, self._partitions)
        name = self._stream_names.get(stream)
        return stream_key(stream, name=name, partition=partition, partitions=self._partitions)

    def _make_room(self) -> bool:
        if len(self._queue) < self._capacity:
            return True
        for position, waiting in enumerate(self._queue):
            if isinstance(waiting.message, SystemStatePacket):
                del self._queue[position]
                self._dropped += 1
                return True
        return False

    def _is_idle(self) -> bool:
        return not self._queue and not self._sending

    def _run(self) -> None:
        while (outgoing := self._next()) is not None:
            fields = self._encode(outgoing)
            if fields is not None and not self._deliver(outgoing, fields):
                return
            with self._changed:
                self._sending = False
                self._changed.notify_all()

    def _next(self) -> _Outgoing | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed.is_set())
            if self._closed.is_set():
                return None
            self._sending = True
            return self._queue.popleft()

    def _encode(self, outgoing: _Outgoing) -> EntryFields | None:
        try:
            return encode_entry(outgoing.message, self._keyring, event_id=outgoing.event_id)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: a message must not stop the next one
            self._refused += 1
            if self._refused == 1:
                log.error("publisher refused a %s: %s", type(outgoing.message).__name__, error)
            return None

    def _deliver(self, outgoing: _Outgoing, fields: EntryFields) -> bool:
        """Send until Redis took it; return False where the publisher was closed first."""
        while not self._closed.is_set():
            try:
                self._restore_kept()
                self._add(outgoing.key, fields)
            except (redis.RedisError, OSError) as error:
                # Only a lost connection can mean a restarted, empty Redis; a refusal cannot.
                self._lost_contact |= isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)
                self._closed.wait(self._outage.failed(error))
            else:
                self._outage.succeeded()
                self._published += 1
                if outgoing.keep_as:
                    self._kept[outgoing.keep_as] = (outgoing.key, fields)
                return True
        return False

    def _restore_kept(self) -> None:
        if self._lost_contact:
            for key, fields in self._kept.values():
                self._add(key, fields)
            self._lost_contact = False

    def _add(self, key: str, fields: EntryFields) -> None:
        self._client.xadd(key, fields)  # type: ignore[arg-type]  # redis-py's invariant dict of unions
