"""Liveness means progress: each stage, brought to a standstill, fails ``/livez`` by its name until it goes on."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from consumers.feed import TableFeed
from consumers.group import ConsumerGroup
from consumers.membership import Membership
from producers.commit import Committer
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.worker.norms import NormsKeeper
from tests.worker.test_hub import get, panel_url

#: What to bring to a standstill -> what ``/livez`` says of it.
STAGES: dict[str, tuple[type, str, str]] = {
    "claim": (ConsumerGroup, "claim", "stage partition 0 "),
    "inference": (InferenceEngine, "infer", "stage inference "),
    "commit": (Committer, "commit", "a step is in flight "),
    "tables": (TableFeed, "follow", "stage tables "),
    "norms": (NormsKeeper, "flush", "stage flush norms "),
    "share": (Membership, "announce", "stage share "),
}
#: Above the rounds of all loops on a busy machine, short enough to wait for.
LIMIT_S = 1.0


@pytest.fixture
def lines():
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets calls through while it is set; set again at the end, so that the worker can drain."""
    gate = threading.Event()
    gate.set()
    yield gate
    gate.set()


def gated(original: Callable[..., Any], gate: threading.Event) -> Callable[..., Any]:
    """Return ``original``, which waits at ``gate`` first."""

    async def awaited(*arguments: Any) -> Any:
        if not gate.is_set():
            await to_thread.run_sync(gate.wait)
        return await original(*arguments)

    def called(*arguments: Any) -> Any:
        gate.wait()
        return original(*arguments)

    return awaited if inspect.iscoroutinefunction(original) else called


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_stands_still_fails_livez_by_name_until_it_goes_on(
    upstream, worker, lines, gate, monkeypatch, stage
) -> None:
    owner, name, said = STAGES[stage]
    monkeypatch.setattr(owner, name, gated(getattr(owner, name), gate))
    async with worker(stage_limit_s=LIMIT_S, flush_interval_s=0.1):
        await upstream.step(1)
        await upstream.decided(1)
        url = panel_url(lines)

        async def live() -> bool:
            return (await get(url + "livez"))[0] == 200

        async def blamed() -> bool:
            status, text = await get(url + "livez")
            return status == 503 and said in text

        try:
            await upstream.until(live, "the worker is live")
            gate.clear()
            await upstream.step(2)
            await upstream.until(blamed, f"/livez says: {said}")
        finally:
            gate.set()
        await upstream.until(live, f"the worker is live again after {stage}")
        await upstream.decided(2)


async def test_a_redis_that_stands_still_is_an_outage_and_no_reason_for_a_restart(
    upstream, worker, lines, monkeypatch, redis_server
) -> None:
    monkeypatch.setattr("tamiyo_stream.worker.connection.ANSWER_MARGIN_S", 0.3)
    async with worker(stage_limit_s=2.0):
        await upstream.step(1)
        await upstream.decided(1)
        url = panel_url(lines)

        async def ready() -> bool:
            return (await get(url + "readyz"))[0] == 200

        async def away() -> bool:
            status, text = await get(url + "readyz")
            return status == 503 and "redis: " in text

        await upstream.until(ready, "the worker is ready")
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            await upstream.until(away, "the outage is noticed")
            assert (await get(url + "livez"))[0] == 200
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await upstream.until(ready, "the worker is ready again")
        await upstream.step(2)
        await upstream.decided(2)
