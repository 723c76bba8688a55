"""A scrape in which every instrument of the table has a sample."""

from __future__ import annotations

import re
import time

from schemas.enums import TelemetryLevel
from tamiyo_stream.hub.hub_state import FeedReading, HubState, ModelInUse
from tamiyo_stream.hub.instruments import INSTRUMENTS, Kind
from tamiyo_stream.hub.meters import Meters
from tamiyo_stream.hub.observations import COVERAGE, OBSERVATIONS
from tests.hub.samples import event, packet, point

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ")


def full_state() -> HubState:
    now = time.time_ns()
    state = HubState(worker_id="w", registries={"seed": 4})
    state.progress.stage("claim", 60.0, time.monotonic())
    state.read_feeds([FeedReading("oona.tolaria.state", lag=1, pending=1, newest_ns=now)], now)
    state.model = ModelInUse("v1", "abc", "cpu", "fp32")
    own = [point(name, 1.0) for name in OBSERVATIONS if name.startswith("tamiyo.")]
    own += [point(f"{COVERAGE}node.layer", 1.0), point("tamiyo.breaker.inference_state", 1.0)]
    own += [point("tamiyo.breaker.inference_failures", 0.0)]
    state.aggregator.record_step(packet(*own, source="tamiyo"), now)
    state.aggregator.ingest(
        packet(
            point("kasmina.isolation.violations", 0.0),
            point("kasmina.seed.alpha", 0.5, seed_id="s"),
            point("kasmina.seed.stage", 4.0, seed_id="s"),
            source="kasmina",
            events=[event("x", TelemetryLevel.INFO)],
        ),
        now,
    )
    state.aggregator.ingest(packet(point("tolaria.training.latency_ms", 12.0)), now)
    return state


def full_scrape() -> str:
    meters = Meters(full_state())
    for one in INSTRUMENTS:
        about = dict.fromkeys(one.attributes, "x")
        if one.kind is Kind.COUNTER:
            meters.add(one.name, 1, about)
        elif one.kind is Kind.HISTOGRAM:
            meters.record(one.name, 1.0, about)
    return meters.exposition().decode()


def samples_of(text: str) -> dict[str, set[str]]:
    """Return the labels of every sample's name."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and not line.startswith("#"):
            labels = {label.partition("=")[0] for label in re.findall(r'[a-zA-Z_]\w*="', match.group(2) or "")}
            found.setdefault(match.group(1), set()).update(labels)
    return found
