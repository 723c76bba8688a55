"""What the probe costs a training loop: the same steps with and without it, in turns, in one process.

Two equal models are trained on equal batches, one of them probed and publishing to a real Redis. Blocks of steps
alternate, in changing order, so that a machine that slows down slows both. A block holds one sampled step, as
every ``sample_every`` steps of a run do; what is still queued at its end is sent on the probe's time.

Torch computes on one thread meanwhile: the time of threads that wait for each other on busy cores varies by more
than the probe costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis
from tamiyo_stream.upstream.publisher import StreamPublisher
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tamiyo_stream.upstream.tolaria.sampling import SHORTEST

WARM_UP_BLOCKS = 2
FLUSH_S = 10.0


@dataclass(frozen=True, slots=True)
class OverheadReport:
    """Cost of the probe on ``parameters`` weights.

    Attributes:
        steps: steps timed with the probe, and as many without.
        plain_ms: median time of a step without probe, averaged per block.
        probed_ms: the same with probe.
        overhead: median over the block pairs of probed / plain time, minus 1; 0.05 = 5 %.
        low: lower quartile of the pairs' overheads.
        high: upper quartile.
        sample_every: steps per sampled step.
        errors: what the probe failed at while it was timed; a figure with errors says nothing.
    """

    steps: int
    parameters: int
    plain_ms: float
    probed_ms: float
    overhead: float
    low: float
    high: float
    sample_every: int
    errors: int


class Training(Protocol):
    """A training run to time: its model, its optimizer, and one step that ends once its loss is known."""

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""

    @property
    def optimizer(self) -> Optimizer:
        """Its optimizer."""

    @property
    def samples(self) -> int:
        """Samples per step."""

    def step(self) -> torch.Tensor:
        """Train one step and return its loss."""


def measure_overhead(
    make_training: Callable[[], Training],
    steps: int = 200,
    *,
    redis_url: str | None = None,
    sample_every: int = SHORTEST,
) -> OverheadReport:
    """Time at least ``steps`` steps with and as many without probe; ``redis_url`` None starts a Redis of our own.

    ``make_training`` is called twice and must return equal runs.

    Raises:
        RedisServerUnavailable: no Redis was given and none could be started.
        ValueError: fewer steps than two blocks of ``sample_every``.
    """
    pairs = -(-steps // sample_every)
    if pairs < 2:
        raise ValueError(f"steps is {steps}; time at least {2 * sample_every}, two blocks of sample_every steps")
    with _one_thread():
        if redis_url is not None:
            return _measure(make_training, pairs, redis_url, sample_every)
        with EmbeddedRedis() as server:
            return _measure(make_training, pairs, server.url, sample_every)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure(
    make_training: Callable[[], Training], pairs: int, redis_url: str, sample_every: int
) -> OverheadReport:
    plain, probed = make_training(), make_training()
    with (
        StreamPublisher(redis_url) as publisher,
        TolariaProbe.attach(
            probed.model, probed.optimizer, run_id="overhead", publisher=publisher, sample_every=sample_every
        ) as probe,
    ):

        def probed_block() -> None:
            for _ in range(sample_every):
                probe.step(probed.step(), samples=probed.samples)
            publisher.flush(FLUSH_S)

        def plain_block() -> None:
            for _ in range(sample_every):
                plain.step()

        times = [_timed_pair(plain_block, probed_block, turn % 2 == 1) for turn in range(WARM_UP_BLOCKS + pairs)]
        errors = sum(probe.statistics().errors.values())
    return _report(times[WARM_UP_BLOCKS:], probed.model, sample_every, errors)


def _timed_pair(plain: Callable[[], None], probed: Callable[[], None], probed_first: bool) -> tuple[float, float]:
    """Return (plain, probed) seconds of one block each."""
    if probed_first:
        probed_s = _timed(probed)
        return _timed(plain), probed_s
    return _timed(plain), _timed(probed)


def _timed(block: Callable[[], None]) -> float:
    started = time.perf_counter()
    block()
    return time.perf_counter() - started


def _report(times: list[tuple[float, float]], model: nn.Module, sample_every: int, errors: int) -> OverheadReport:
    overheads = [probed / plain - 1.0 for plain, probed in times]
    low, middle, high = statistics.quantiles(overheads, n=4, method="inclusive")
    return OverheadReport(
        steps=len(times) * sample_every,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        plain_ms=statistics.median(plain for plain, _ in times) / sample_every * 1e3,
        probed_ms=statistics.median(probed for _, probed in times) / sample_every * 1e3,
        overhead=middle,
        low=low,
        high=high,
        sample_every=sample_every,
        errors=errors,
    )
