"""The operator panel in a real browser: what it shows, how it follows, and what it says when it cannot."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from schemas.enums import HealthStatus, SeedLifecycleStage
from schemas.kasmina import MonitoredLayer, SeedState
from schemas.record import Float32Column
from tamiyo_stream.hub.app import build_app
from tamiyo_stream.hub.hub_state import FeedReading, HubState, ModelInUse
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.server import listen, serve_app
from tests.hub.browser import Browser, Page
from tests.hub.samples import blueprint, command, health, packet, point

LAYERS = ["embedding", "blocks.0.attention", "blocks.0.mlp", "blocks.1.attention", "blocks.1.mlp", "head"]
TOKEN = "a-token-of-length"
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
LIVE = "document.documentElement.dataset.link === 'live'"
#: Things a screen reader names that have no name.
NAMELESS = """
[...document.querySelectorAll('button, a, [role=option], [role=tab], svg[role=img], svg[role=listbox]')]
  .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim()) && !one.closest('[hidden]'))
  .map((one) => one.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def decide(state: HubState, number: int, *, reason: str = "policy", run_id: str = "nightly") -> None:
    why = {
        "layers": {"blocks.0.mlp": 0.5},
        "rules": [
            {"rule": "loss_spike", "signal": "loss_delta", "value": 0.2, "threshold": 0.15, "action": "pause"}
        ],
        "choice": {"slot": 0, "action": "graft", "seed": "seed-0"},
    }
    told = packet(
        point("tamiyo.decision.latency_ms", 20.0 + number),
        point("tamiyo.decision.budget_ms", 45.0),
        point("tamiyo.training_loss", 2.5),
        point("tamiyo.policy.risk_score", 0.25),
        point("tamiyo.gnn.feature_coverage", 0.9),
        point("tamiyo.gnn.feature_coverage.node.seed", 0.5),
        point("tamiyo.conservative_mode", 0.0),
        point("tamiyo.breaker.inference_state", 2.0),
        source="tamiyo",
        run_id=run_id,
        system_health=health(HealthStatus.HEALTHY, "policy"),
    )
    action = "pause" if reason != "policy" else "hold"
    notes = {
        "why": json.dumps(why),
        "risk_reason": reason,
        "command_action": action,
        "decision_latency_ms": "21.0",
    }
    state.step(command(number, run_id=run_id, **notes), told, time.time_ns())


def worker() -> HubState:
    now = time.time_ns()
    state = HubState(worker_id="worker-1", model=ModelInUse("tamiyo_gnn_v1", "abc", "cpu", "fp32"))
    state.progress.started = True
    decide(state, 1)
    state.panel.model("nightly", blueprint(LAYERS), now)
    state.panel.layers("nightly", Float32Column.of([0.1] * len(LAYERS)), now)
    watched = [MonitoredLayer(layer_id="blocks.0.mlp")]
    seed = SeedState(seed_id="seed-0", stage=SeedLifecycleStage.BLENDING, alpha=0.5, monitored_layers=watched)
    state.panel.seeds("nightly", [seed], now)
    state.read_feeds([FeedReading("oona.tolaria.state", lag=3, pending=1, newest_ns=now)], now)
    return state


@asynccontextmanager
async def serving(state: HubState, *, port: int = 0, token: str = "", tick_s: float = 0.05) -> AsyncIterator[int]:
    stop, listener = anyio.Event(), listen("127.0.0.1", port)
    app = build_app(state, Meters(state), stop, token=token, tick_s=tick_s)
    async with anyio.create_task_group() as group:
        group.start_soon(serve_app, app, listener, stop)
        yield listener.getsockname()[1]
        stop.set()


async def on(function: Callable[..., Any], *given: Any) -> Any:
    return await to_thread.run_sync(function, *given)


async def opened(browser: Browser, port: int, **given: Any) -> Page:
    page = await on(lambda: browser.page(**given))
    await on(page.open, f"http://127.0.0.1:{port}/")
    await on(page.until, f"{LIVE} && document.querySelector('#step')")
    return page


async def test_it_shows_run_model_decision_feeds_and_policy_without_a_complaint(browser: Browser) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port)
        await on(
            page.until,
            "document.querySelectorAll('.cell').length === 6 && document.querySelector('#decisions details')",
        )
        text = await on(page.text, "body")
        for part in (
            "nightly",
            "worker-1",
            "2.5",
            "21.0 ms",
            "0.25",
            "90 %",
            "inference open",
            "seed-0",
            "tolaria.state",
        ):
            assert part in text, part
        assert await on(page.do, "document.querySelectorAll('.seed').length") == 1
        assert await on(page.do, "document.querySelector('#cell-2 .halo').style.opacity > 0.5")
        assert await on(page.complaints) == []


async def test_it_is_there_within_a_second_and_small(browser: Browser) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port)
        painted = await on(page.until, "performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        moved = await on(
            page.do,
            "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
            ".filter((one) => !one.name.endsWith('/events')).reduce((sum, one) => sum + one.transferSize, 0)",
        )
        assert painted < 1000
        assert moved < 150_000
        origins = await on(
            page.do, "[...new Set(performance.getEntriesByType('resource').map((one) => new URL(one.name).host))]"
        )
        assert origins == [f"127.0.0.1:{port}"]


async def test_it_follows_the_run(browser: Browser) -> None:
    state = worker()
    async with serving(state) as port:
        page = await opened(browser, port)
        decide(state, 2, reason="loss_spike")
        await on(page.until, "document.querySelector('#step').innerText === '2'")
        await on(page.until, "document.querySelector('#decisions li').innerText.includes('loss spike')")
        assert await on(page.text, "#said") == "nightly: pause because of loss spike"


async def test_a_decision_opens_to_its_why_and_stays_open_while_others_come(browser: Browser) -> None:
    state = worker()
    async with serving(state) as port:
        page = await opened(browser, port)
        await on(page.until, "document.querySelector('#decisions summary')")
        await on(page.do, "document.querySelector('#decisions summary').click()")
        await on(page.until, "document.querySelector('.why')")
        why = await on(page.text, ".why")
        for part in ("loss_spike", "0.2, limit 0.15: pause", "graft · seed-0", "blocks.0.mlp", "50 %"):
            assert part in why, part
        decide(state, 2, reason="loss_spike")
        assert await on(page.until, "!waiting.hidden && waiting.innerText") == "1 new: show"
        assert await on(page.do, "!!document.querySelector('.why')")
        await on(page.do, "waiting.click()")
        await on(page.until, "document.querySelector('#decisions li').innerText.includes('loss spike')")


async def test_it_survives_a_restart_of_the_worker_and_says_so_meanwhile(browser: Browser) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port)
    await on(page.until, "document.documentElement.dataset.link === 'lost'")
    assert await on(page.text, "#link") == "disconnected, trying again"
    assert await on(page.text, "#step") == "1"
    assert await on(page.text, "#live") == "progress unknown"
    state = worker()
    decide(state, 7)
    async with serving(state, port=port):
        await on(
            page.until,
            f"{LIVE} && document.querySelector('#step').innerText === '7'",
        )
        assert await on(page.do, "document.querySelectorAll('#decisions > li').length") == 1


async def test_it_says_when_nothing_new_comes(browser: Browser) -> None:
    async with serving(worker(), tick_s=60.0) as port:
        page = await opened(browser, port)
        await on(page.until, "document.documentElement.dataset.link === 'stale'")
        assert (await on(page.text, "#link")).startswith("no news for ")


async def test_a_run_that_falls_silent_is_dimmed_and_named(browser: Browser) -> None:
    state = worker()
    state.panel.runs()[0].seen_ns -= 42_000_000_000
    async with serving(state) as port:
        page = await opened(browser, port)
        await on(page.until, "document.querySelector('#board').classList.contains('silent')")
        assert "silent 42 s" in await on(page.text, "#runs")


async def test_a_worker_without_progress_is_an_alarm_with_its_reason(browser: Browser) -> None:
    state = worker()
    state.progress.stage("claim", 1.0, time.monotonic() - 60)
    async with serving(state) as port:
        page = await opened(browser, port)
        assert "stage claim has not ticked" in await on(page.text, "#alarms")
        assert await on(page.text, "#live") == "progress no"


async def test_before_the_first_run_it_says_what_it_waits_for(browser: Browser) -> None:
    async with serving(HubState()) as port:
        page = await opened(browser, port)
        assert "No training run has been heard of yet" in await on(page.text, "main")


async def test_layers_and_seeds_are_reached_by_keyboard_and_described(browser: Browser) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port)
        await on(page.until, "document.querySelectorAll('.seed').length")
        await on(page.do, "document.querySelector('#model-svg').focus()")
        for _ in range(3):
            await on(page.press, "ArrowRight")
        detail = await on(page.text, "#detail")
        assert detail.startswith("blocks.0.mlp · linear · 10 parameters")
        assert "50 % of the attention · watched by seed-0" in detail
        await on(page.press, "End")
        assert (await on(page.text, "#detail")).startswith("seed seed-0 · blending · alpha 0.50")
        assert (
            await on(page.do, "document.querySelector('#model-svg').getAttribute('aria-activedescendant')")
            == "seed-0"
        )


async def test_runs_are_chosen_by_keyboard(browser: Browser) -> None:
    state = worker()
    decide(state, 9, run_id="other")
    async with serving(state) as port:
        page = await opened(browser, port)
        await on(page.do, "document.querySelector('#runs [aria-selected=true]').focus()")
        await on(page.press, "Home")
        await on(page.press, "ArrowRight")
        await on(page.until, "document.querySelector('#runs [aria-selected=true]').innerText.includes('other')")
        assert await on(page.text, "#step") == "9"


async def test_every_control_has_a_name_and_every_heading_its_place(browser: Browser) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port)
        await on(page.until, "document.querySelectorAll('.seed').length")
        assert await on(page.do, NAMELESS) == []
        assert await on(page.do, "document.querySelectorAll('h1').length") == 1
        assert await on(page.do, "document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [360, 768, 1400])
@pytest.mark.parametrize("dark", [False, True])
async def test_it_fits_phone_tablet_and_desk_and_is_readable_light_and_dark(
    browser: Browser, width: int, dark: bool
) -> None:
    async with serving(worker()) as port:
        page = await opened(browser, port, width=width, dark=dark)
        await on(page.until, "document.querySelectorAll('.cell').length === 6")
        assert await on(page.do, "document.documentElement.scrollWidth <= innerWidth")
        assert await on(page.do, CONTRAST) == []


async def test_with_a_token_it_opens_after_signing_in(browser: Browser) -> None:
    async with serving(worker(), token=TOKEN) as port:
        page = await on(browser.page)
        await on(page.open, f"http://127.0.0.1:{port}/")
        await on(page.until, "document.querySelector('#token')")
        await on(
            page.do,
            f"document.querySelector('#token').value = '{TOKEN}'; document.querySelector('button').click()",
        )
        await on(page.until, LIVE)
