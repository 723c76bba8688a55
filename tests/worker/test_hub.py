"""What a running worker shows: health, metrics, panel, the consolidated view of its runs."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from schemas.catalogue import Stream
from schemas.telemetry import MetricPoint, TelemetryPacket
from tests.upstream.waiting import wait_until


@pytest.fixture
def lines():
    with capture_logs() as captured:
        yield captured


def panel_url(lines) -> str:
    (url,) = [line["url"] for line in lines if line["event"] == "panel"]
    return url


async def get(url: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own worker
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await to_thread.run_sync(fetch)


async def test_a_deciding_worker_is_live_and_ready_and_counts_its_decisions(upstream, worker, lines) -> None:
    async with worker():
        for step in (1, 2):
            await upstream.step(step)
            await upstream.decided(step)
        url = panel_url(lines)
        for probe in ("livez", "readyz", "startupz"):
            status, text = await get(url + probe)
            assert status == 200, (probe, text)
        status, metrics = await get(url + "metrics")
        assert status == 200
        assert "tamiyo_decisions" in metrics
        assert 'messaging_destination_name="oona.tolaria.state"' in metrics
        status, page = await get(url)
        assert status == 200
        assert "<title>" in page


async def test_what_tolaria_and_kasmina_report_comes_back_in_one_consolidated_packet(upstream, worker) -> None:
    async with worker(telemetry_interval_s=0.2):
        await upstream.step(1)
        await upstream.decided(1)
        for source, name in (("tolaria", "tolaria.training.loss"), ("kasmina", "kasmina.seeds.active")):
            await upstream.publish(
                Stream.TELEMETRY,
                TelemetryPacket(
                    packet_id=f"{source}-1",
                    timestamp=1,
                    source_subsystem=source,
                    run_id="run",
                    metrics=[MetricPoint(name=name, value=1.5)],
                ),
            )

        async def consolidated() -> bool:
            names = {
                metric.name
                for packet in await upstream.telemetry()
                if packet.source_subsystem == "tamiyo"
                for metric in packet.metrics
            }
            return {"tolaria.training.loss", "kasmina.seeds.active"} <= names

        await upstream.until(consolidated, "both subsystems' metrics are re-emitted by Tamiyo")


async def test_a_second_worker_on_the_same_port_decides_all_the_same(upstream, worker, lines) -> None:
    async with worker():
        await upstream.step(1)
        await upstream.decided(1)
        port = int(panel_url(lines).rsplit(":", 1)[1].rstrip("/"))
        async with worker(worker_id="w2", web_port=port):
            await to_thread.run_sync(
                lambda: wait_until(
                    lambda: any(line["event"] == "panel_unavailable" for line in lines), "the port is taken"
                )
            )
            await upstream.step(2)
            await upstream.decided(2)


async def test_without_a_host_there_is_no_panel(upstream, worker, lines) -> None:
    async with worker(web_host=""):
        await upstream.step(1)
        await upstream.decided(1)
    assert "panel" not in {line["event"] for line in lines}
