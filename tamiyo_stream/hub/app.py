"""The worker's web application: probes, metrics, the operator panel.

``/livez`` ``/readyz`` ``/startupz`` answer 200 or 503 with the reasons, ``/metrics`` the Prometheus text. The
panel is ``/``; its data comes as server-sent events from ``/events``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tamiyo_stream.hub.access import COOKIE, Access
from tamiyo_stream.hub.assets import Asset, load_assets
from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.panel_stream import MAX_VIEWERS, TICK_S, PanelStream
from tamiyo_stream.hub.progress import Verdict

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
#: A form with a token is short.
MAX_FORM_BYTES = 4096
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def build_app(
    state: HubState, meters: Meters, closing: anyio.Event, *, token: str = "", tick_s: float = TICK_S
) -> Starlette:
    """Return the application.

    Args:
        state: what is shown.
        meters: what ``/metrics`` exposes.
        tick_s: time between a viewer's updates.
        closing: set when the worker stops; open streams end then.
        token: what a viewer must know; empty = the panel answers this machine's own names only.
    """
    pages = _Pages(state, meters, PanelStream(state, closing, tick_s=tick_s), Access(token), load_assets())
    progress = state.progress
    return Starlette(
        routes=[
            Route("/livez", _probe(lambda: progress.live(time.monotonic()))),
            Route("/readyz", _probe(lambda: progress.readiness(time.monotonic()))),
            Route("/startupz", _probe(progress.startup)),
            Route("/metrics", pages.metrics),
            Route("/", pages.index),
            Route("/login", pages.login, methods=["POST"]),
            Route("/events", pages.events),
            Route("/assets/{name}", pages.asset),
        ]
    )


def _probe(verdict: Callable[[], Verdict]) -> Callable[[Request], Response]:
    async def answer(_: Request) -> Response:
        found = verdict()
        return JSONResponse(
            {"ok": found.ok, "reasons": list(found.reasons)},
            status_code=200 if found.ok else 503,
            headers={"cache-control": "no-store"},
        )

    return answer  # type: ignore[return-value]  # Starlette takes coroutine functions where it says callables


@dataclass(frozen=True, slots=True)
class _Pages:
    state: HubState
    meters: Meters
    stream: PanelStream
    access: Access
    assets: dict[str, Asset]

    async def metrics(self, _: Request) -> Response:
        if not self.meters.options.prometheus:
            return Response(
                "the Prometheus exposition is switched off\n", status_code=404, media_type="text/plain"
            )
        # On a thread: the exposition takes milliseconds, a decision must not wait for it.
        return Response(await to_thread.run_sync(self.meters.exposition), headers={"content-type": PROMETHEUS})

    async def index(self, request: Request) -> Response:
        if self.access.allows(request):
            return self._file("index.html", request)
        return self._file("login.html", request, status=401) if self.access.token else _misdirected()

    async def login(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                return Response(status_code=413)
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        if not self.access.knows(given):
            return self._file("login.html", request, status=401)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE, self.access.cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer

    async def events(self, request: Request) -> Response:
        if not self.access.allows(request):
            return Response(status_code=401 if self.access.token else 421)
        if self.stream.viewers >= MAX_VIEWERS:
            return Response("too many viewers\n", status_code=503, media_type="text/plain")
        return StreamingResponse(
            self.stream.events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.assets or name.endswith(".html"):
            return Response(status_code=404)
        return self._file(name, request)

    def _file(self, name: str, request: Request, status: int = 200) -> Response:
        asset = self.assets[name]
        headers = {**HEADERS, "etag": asset.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if status == 200 and request.headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=headers)
        packed = "gzip" in request.headers.get("accept-encoding", "")
        if packed:
            headers["content-encoding"] = "gzip"
        body = asset.compressed if packed else asset.plain
        return Response(body, status, headers, media_type=asset.media_type)


def _misdirected() -> Response:
    return Response(
        "this panel answers http://localhost and http://127.0.0.1 only; set a token to open it further\n",
        status_code=421,
        media_type="text/plain",
    )
