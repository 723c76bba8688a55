"""Asks an ASGI application without a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.types import ASGIApp


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app: ASGIApp, path: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    path, _, query = path.partition("?")
    given = {"host": "localhost:8787", **{name.replace("_", "-"): text for name, text in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), text.encode()) for name, text in given.items()],
        "scheme": "http",
        "server": ("127.0.0.1", 8787),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
    }
    sent: list[Any] = []

    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked > 1:
            await anyio.sleep_forever()  # the client stays
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    found = {name.decode(): text.decode() for name, text in start["headers"]}
    return Answer(start["status"], found, content)
