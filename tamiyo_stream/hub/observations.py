"""What the gauges show when somebody scrapes: one function of the hub's state per instrument.

Called from the scraper's thread: whatever the worker changes meanwhile is copied in one go before it is walked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from tamiyo_stream.hub.hub_state import FeedReading, HubState

Reading = tuple[float, dict[str, str]]
Read = Callable[[HubState], Iterable[Reading]]
NS_PER_S = 1e9
COVERAGE = "tamiyo.gnn.feature_coverage."
BREAKER = "tamiyo.breaker."
_UPSTREAM = ("tolaria.", "kasmina.")


def _now() -> float:
    return time.monotonic()


def _feed(value: Callable[[FeedReading], float | None]) -> Read:
    def read(state: HubState) -> Iterable[Reading]:
        for name, feed in state.feeds.items():
            figure = value(feed)
            if figure is not None:
                yield float(figure), {"stream": name}

    return read


def _feed_age(feed: FeedReading) -> float | None:
    return None if feed.newest_ns is None else max(0.0, (time.time_ns() - feed.newest_ns) / NS_PER_S)


def _of_run(metric: str) -> Read:
    def read(state: HubState) -> Iterable[Reading]:
        for run_id, name, attributes, sample in state.aggregator.samples(time.time_ns()):
            if name == metric and not attributes:
                yield sample.value, {"run": run_id}

    return read


def _coverage_by_type(state: HubState) -> Iterable[Reading]:
    for run_id, name, _, sample in state.aggregator.samples(time.time_ns()):
        if name.startswith(COVERAGE):
            yield sample.value, {"run": run_id, "feature": name.removeprefix(COVERAGE)}


def _breaker(what: str) -> Read:
    def read(state: HubState) -> Iterable[Reading]:
        for run_id, name, _, sample in state.aggregator.samples(time.time_ns()):
            if name.startswith(BREAKER) and name.endswith(what):
                yield sample.value, {"run": run_id, "breaker": name.removeprefix(BREAKER).removesuffix(what)}

    return read


def _upstream(state: HubState) -> Iterable[Reading]:
    for run_id, name, attributes, sample in state.aggregator.samples(time.time_ns()):
        if not attributes and name.startswith(_UPSTREAM):
            yield sample.value, {"run": run_id, "metric": name}


def _seed(metric: str) -> Read:
    def read(state: HubState) -> Iterable[Reading]:
        for run_id, name, attributes, sample in state.aggregator.samples(time.time_ns()):
            if name == metric and "seed_id" in attributes:
                yield sample.value, {"run": run_id, "seed": attributes["seed_id"]}

    return read


def _model(state: HubState) -> Iterable[Reading]:
    model = state.model
    if model is not None:
        about = {"version": model.version, "digest": model.digest[:12]}
        yield 1.0, {**about, "device": model.device, "precision": model.precision}


def _source_ages(state: HubState) -> Iterable[Reading]:
    for run_id, source, age_ms in state.aggregator.ages(time.time_ns()):
        yield age_ms / 1000, {"run": run_id, "source": source}


def _packets(state: HubState) -> Iterable[Reading]:
    for verdict, count in state.aggregator.statistics().packets.items():
        yield count, {"verdict": str(verdict)}


def _stages(state: HubState) -> Iterable[Reading]:
    now = _now()
    for name, stage in list(state.progress.stages.items()):
        yield max(0.0, now - stage.ticked_at), {"stage": name}


def _single(value: Callable[[HubState], float]) -> Read:
    return lambda state: [(float(value(state)), {})]


_RUN_METRICS = (
    "tamiyo.gnn.feature_coverage",
    "tamiyo.gnn.mandatory_coverage",
    "tamiyo.gnn.bsds_missing",
    "tamiyo.gnn.bsds_failed",
    "tamiyo.gnn.compile_enabled",
    "tamiyo.gnn.sampled_edges",
    "tamiyo.validation_loss",
    "tamiyo.training_loss",
    "tamiyo.loss_delta",
    "tamiyo.conservative_mode",
    "tamiyo.policy.risk_score",
    "tamiyo.policy.value_estimate",
    "tamiyo.blueprint.risk",
)

#: Instrument -> what it reads.
OBSERVATIONS: Mapping[str, Read] = {
    "tamiyo.live": _single(lambda state: state.progress.live(_now()).ok),
    "tamiyo.ready": _single(lambda state: state.progress.readiness(_now()).ok),
    "tamiyo.in_flight": _single(lambda state: state.progress.in_flight),
    "tamiyo.in_flight.age": _single(lambda state: state.progress.oldest_s(_now())),
    "tamiyo.stage.age": _stages,
    "tamiyo.feed.lag": _feed(lambda feed: feed.lag),
    "tamiyo.feed.pending": _feed(lambda feed: feed.pending),
    "tamiyo.feed.age": _feed(_feed_age),
    "tamiyo.model.info": _model,
    "tamiyo.registry.entries": lambda state: [
        (float(count), {"registry": name}) for name, count in state.registries.items()
    ],
    "tamiyo.hub.runs": _single(lambda state: state.aggregator.statistics().runs),
    "tamiyo.hub.series": _single(lambda state: state.aggregator.statistics().series),
    "tamiyo.hub.packets": _packets,
    "tamiyo.hub.dropped": _single(lambda state: state.aggregator.statistics().dropped),
    "tamiyo.source.age": _source_ages,
    "tamiyo.gnn.feature_coverage_by_type": _coverage_by_type,
    "tamiyo.breaker.state": _breaker("_state"),
    "tamiyo.breaker.failures": _breaker("_failures"),
    "tamiyo.upstream.value": _upstream,
    "tamiyo.seed.alpha": _seed("kasmina.seed.alpha"),
    "tamiyo.seed.stage": _seed("kasmina.seed.stage"),
    **{name: _of_run(name) for name in _RUN_METRICS},
}
