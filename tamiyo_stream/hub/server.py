"""Serves the web application beside the worker, in the same event loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp

#: Streams end with the worker by themselves; whoever hangs on longer is cut off.
GRACE_S = 2


class AddressUnavailable(OSError):
    """The panel's address cannot be bound; the text says which and why."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the worker's


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port`` (0 = any free one).

    Raises:
        AddressUnavailable: it is in use, or not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise AddressUnavailable(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another address or port"
        ) from None


async def serve_app(app: ASGIApp, listener: socket.socket, stop: anyio.Event) -> None:
    """Serve ``app`` on ``listener`` until ``stop`` is set; close the listener."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    server = _Server(config)

    async def exit_with_worker() -> None:
        await stop.wait()
        server.should_exit = True

    with listener:
        async with anyio.create_task_group() as group:
            group.start_soon(exit_with_worker)
            await server.serve(sockets=[listener])
            group.cancel_scope.cancel()
