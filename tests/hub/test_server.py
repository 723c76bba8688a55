"""The application served beside the worker."""

from __future__ import annotations

import anyio
import pytest

from tamiyo_stream.hub.app import build_app
from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.server import AddressUnavailable, listen, serve_app


async def http(port: int, path: str) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            return answer


async def test_the_worker_serves_until_it_stops_and_streams_end_with_it() -> None:
    stop, state = anyio.Event(), HubState()
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = build_app(state, Meters(state), stop, tick_s=0.01)
    answers = {}

    async def watch() -> None:
        answers["events"] = await http(port, "/events")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(serve_app, app, listener, stop)
            answers["livez"] = await http(port, "/livez")
            group.start_soon(watch)
            await http(port, "/metrics")
            stop.set()
    assert answers["livez"].startswith(b"HTTP/1.1 200")
    assert b"event: bye" in answers["events"]


def test_an_address_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressUnavailable, match=f"port {port}: .*choose another"):
            listen("127.0.0.1", port)
