"""A loopback TCP proxy in front of Redis that can delay, slice, reset and silence what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

#: SO_LINGER of zero seconds: closing sends a reset.
RESET = struct.pack("ii", 1, 0)
CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to traffic. ``slice`` = bytes at a time; ``reset`` = chance per chunk of a reset connection."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    slice: int = CHUNK
    reset: float = 0.0


class FaultyProxy:
    """Forwards connections on ``port`` to ``target_port``, under the present :attr:`fault`."""

    def __init__(self, target_port: int, seed: int) -> None:
        self._target_port = target_port
        self._dice = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._silenced: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self.fault = Fault()
        self.port = 0
        self.resets = 0
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="faulty-proxy")
        self._thread.start()
        started.wait()

    def silence(self) -> int:
        """Make every open connection half-open: nothing passes any more, nobody is told. Return how many."""
        silenced = set(self._writers)
        self._silenced |= silenced
        return len(silenced) // 2  # both ends of each

    def close(self) -> None:
        """Reset every connection and stop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        for writer in list(self._writers):
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        pumps = [asyncio.ensure_future(self._pump(*ends_)) for ends_ in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # the proxy is closing; asyncio would report the handler's own cancellation as an error
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers -= ends
            self._silenced -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self.fault.slice):
                fault = self.fault
                if fault.latency_s or fault.jitter_s:
                    await asyncio.sleep(max(0.0, self._dice.gauss(fault.latency_s, fault.jitter_s)))
                if writer in self._silenced:
                    await asyncio.Event().wait()
                if self._dice.random() < fault.reset:
                    self.resets += 1
                    # Part of it arrives, then the connection is gone.
                    writer.write(data[: len(data) // 2])
                    peer: socket.socket = writer.get_extra_info("socket")
                    with contextlib.suppress(OSError):
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
