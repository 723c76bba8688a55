"""The web application: probes, metrics, who may see the panel, and its live stream."""

from __future__ import annotations

import gzip
import json
import time
from urllib.parse import urlencode

import anyio
import pytest

from tamiyo_stream.hub.access import COOKIE, TokenRequired, is_loopback, require_token
from tamiyo_stream.hub.app import build_app
from tamiyo_stream.hub.hub_state import HubState
from tamiyo_stream.hub.meters import ExportOptions, Meters
from tamiyo_stream.hub.panel_stream import MAX_VIEWERS, PER_RUN, PanelStream, TooManyViewers
from tests.hub.asgi import ask
from tests.hub.samples import NOW, blueprint, command, packet, point

TOKEN = "a-token-of-length"


@pytest.fixture
def state() -> HubState:
    found = HubState(worker_id="w")
    found.progress.started = True
    return found


def app_of(state: HubState, *, token: str = "", prometheus: bool = True, closing: anyio.Event | None = None):
    meters = Meters(state, ExportOptions(prometheus=prometheus))
    return build_app(state, meters, closing or anyio.Event(), token=token, tick_s=0.001)


def closed() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event


async def test_probes_answer_ok_where_there_is_progress(state: HubState) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        answer = await ask(app_of(state), path)
        assert (answer.status, answer.json()) == (200, {"ok": True, "reasons": []})


async def test_a_stage_that_stopped_fails_liveness_with_the_reason(state: HubState) -> None:
    state.progress.stage("claim", 5.0, time.monotonic() - 60)
    answer = await ask(app_of(state), "/livez")
    assert answer.status == 503
    assert "stage claim has not ticked" in answer.json()["reasons"][0]


async def test_a_worker_without_its_lease_is_live_and_not_ready(state: HubState) -> None:
    state.progress.waits_for("lease 0", "another worker holds it")
    assert (await ask(app_of(state), "/livez")).status == 200
    assert (await ask(app_of(state), "/readyz")).status == 503


async def test_metrics_are_prometheus_text(state: HubState) -> None:
    answer = await ask(app_of(state), "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"\ntamiyo_live 1.0\n" in answer.body


async def test_metrics_that_are_switched_off_say_so(state: HubState) -> None:
    answer = await ask(app_of(state, prometheus=False), "/metrics")
    assert (answer.status, answer.body) == (404, b"the Prometheus exposition is switched off\n")


async def test_the_panel_is_there_for_this_machine(state: HubState) -> None:
    for host in ("localhost:8787", "127.0.0.1:8787", "[::1]:8787", "localhost"):
        assert (await ask(app_of(state), "/", host=host)).status == 200


async def test_a_name_pointed_at_this_machine_from_elsewhere_does_not_see_the_panel(state: HubState) -> None:
    for path in ("/", "/events"):
        assert (await ask(app_of(state), path, host="evil.example")).status == 421


async def test_nothing_of_the_panel_comes_from_elsewhere(state: HubState) -> None:
    answer = await ask(app_of(state), "/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for asset in ("panel.css", "panel.js", "model.js", "icon.svg"):
        body = (await ask(app_of(state), f"/assets/{asset}")).body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"http://" not in body
        assert b"https://" not in body


async def test_the_page_is_small_and_revalidated_by_its_tag(state: HubState) -> None:
    app = app_of(state)
    total = 0
    for path in ("/", "/assets/panel.css", "/assets/panel.js", "/assets/model.js", "/assets/icon.svg"):
        answer = await ask(app, path, accept_encoding="gzip")
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.body) == (await ask(app, path)).body
        total += len(answer.body)
        assert (await ask(app, path, if_none_match=answer.headers["etag"])).status == 304
    assert total < 40_000


@pytest.mark.parametrize("name", ["../app.py", "index.html", "nothing.js"])
async def test_only_the_panels_files_are_served(state: HubState, name: str) -> None:
    assert (await ask(app_of(state), f"/assets/{name}")).status == 404


async def test_with_a_token_the_panel_asks_for_it(state: HubState) -> None:
    app = app_of(state, token=TOKEN, closing=closed())
    page = await ask(app, "/", host="elsewhere:8787")
    assert page.status == 401
    assert b'action="/login"' in page.body
    assert (await ask(app, "/events")).status == 401
    assert (await ask(app, "/livez")).status == 200
    assert (await ask(app, "/metrics")).status == 200


async def test_the_token_opens_the_panel_and_the_browser_keeps_something_else(state: HubState) -> None:
    app = app_of(state, token=TOKEN, closing=closed())
    answer = await ask(app, "/login", method="POST", body=urlencode({"token": TOKEN}).encode())
    assert answer.status == 303
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    kept = cookie.partition(";")[0]
    assert (await ask(app, "/", cookie=kept)).status == 200
    assert (await ask(app, "/events", cookie=kept)).status == 200
    assert (await ask(app, "/", authorization=f"Bearer {TOKEN}")).status == 200


@pytest.mark.parametrize("body", [b"", b"token=wrong", b"token=", urlencode({"token": TOKEN[:-1]}).encode()])
async def test_a_wrong_token_opens_nothing(state: HubState, body: bytes) -> None:
    app = app_of(state, token=TOKEN)
    assert (await ask(app, "/login", method="POST", body=body)).status == 401
    assert (await ask(app, "/", authorization="Bearer wrong")).status == 401
    assert (await ask(app, "/", cookie=f"{COOKIE}={TOKEN}")).status == 401


async def test_a_form_that_is_too_long_is_refused(state: HubState) -> None:
    assert (await ask(app_of(state, token=TOKEN), "/login", method="POST", body=b"x" * 5000)).status == 413


async def test_without_a_token_no_empty_one_signs_in(state: HubState) -> None:
    assert (await ask(app_of(state), "/login", method="POST", body=b"token=")).status == 401


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),  # noqa: S104 - told apart, not bound
        ("10.0.0.1", False),
        ("tamiyo", False),
    ],
)
def test_loopback_is_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_panel_beyond_loopback_needs_a_token() -> None:
    require_token("127.0.0.1", "")
    require_token("10.0.0.1", TOKEN)
    with pytest.raises(TokenRequired, match=r"panel on 10\.0\.0\.1 is reachable"):
        require_token("10.0.0.1", "")
    with pytest.raises(TokenRequired, match="at least 16"):
        require_token("127.0.0.1", "short")


def parse(chunk: bytes) -> list[tuple[str, dict]]:
    found = []
    for block in chunk.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def decided(state: HubState, number: int, run_id: str = "run") -> None:
    figures = packet(point("tamiyo.decision.latency_ms", 20.0), source="tamiyo", run_id=run_id)
    state.step(command(number, run_id=run_id), figures, NOW)


async def test_a_viewer_gets_the_whole_then_what_is_new(state: HubState) -> None:
    decided(state, 1)
    state.panel.model("run", blueprint(["a"]), NOW)
    stream = PanelStream(state, anyio.Event(), tick_s=0.001).events()
    assert await anext(stream) == b"retry: 1000\n\n"
    assert [name for name, _ in parse(await anext(stream))] == ["state", "picture", "history", "decisions"]
    decided(state, 2)
    second = parse(await anext(stream))
    assert [name for name, _ in second] == ["state", "history", "decisions"]
    assert [one["step"] for one in second[2][1]["decisions"]] == [2]
    assert [name for name, _ in parse(await anext(stream))] == ["state", "history"]
    await stream.aclose()


async def test_many_decisions_in_one_tick_are_sent_in_part_and_counted(state: HubState) -> None:
    decided(state, 0)
    stream = PanelStream(state, anyio.Event(), tick_s=0.001).events()
    await anext(stream)
    await anext(stream)
    for number in range(1, 21):
        decided(state, number)
    (news,) = [told for name, told in parse(await anext(stream)) if name == "decisions"]
    assert [one["step"] for one in news["decisions"]] == list(range(21 - PER_RUN, 21))
    assert news["skipped"] == 20 - PER_RUN
    await stream.aclose()


async def test_streams_end_with_the_worker(state: HubState) -> None:
    closing = anyio.Event()
    stream = PanelStream(state, closing, tick_s=60.0)
    events = stream.events()
    await anext(events)
    await anext(events)
    closing.set()
    assert parse(await anext(events)) == [("bye", {})]
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert stream.viewers == 0


async def test_viewers_are_limited(state: HubState) -> None:
    stream = PanelStream(state, anyio.Event())
    viewers = [stream.events() for _ in range(MAX_VIEWERS)]
    for viewer in viewers:
        await anext(viewer)
    with pytest.raises(TooManyViewers, match="close one"):
        await anext(stream.events())
    await viewers[0].aclose()
    await anext(late := stream.events())
    for viewer in (*viewers[1:], late):
        await viewer.aclose()
    assert stream.viewers == 0


async def test_the_state_is_encoded_once_for_viewers_of_one_moment(state: HubState, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        "tamiyo_stream.hub.panel_stream.state_document", lambda *given: calls.append(given) or {"runs": []}
    )
    stream = PanelStream(state, anyio.Event(), tick_s=60.0)
    viewers = [stream.events() for _ in range(3)]
    for viewer in viewers:
        await anext(viewer)
        await anext(viewer)
        await viewer.aclose()
    assert len(calls) == 1
