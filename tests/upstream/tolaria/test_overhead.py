"""The overhead benchmark times real probed training; the figure itself is no test."""

from __future__ import annotations

import pytest
import redis
import torch
from torch import nn

from schemas.catalogue import Stream
from tamiyo_stream.upstream.tolaria.overhead import measure_overhead


class SmallTraining:
    """A line fitted to noise: enough to be probed."""

    samples = 4

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.model(torch.ones(self.samples, 3)).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def test_it_times_blocks_of_probed_and_plain_steps_and_publishes_each_probed_one(server):
    report = measure_overhead(SmallTraining, 2, redis_url=server.url, sample_every=1)

    with redis.Redis.from_url(server.url) as client:
        published = client.xlen(Stream.STATE)
    assert report.steps == 2
    assert published == 4  # two blocks of warm-up, two timed
    assert report.errors == 0
    assert report.low <= report.overhead <= report.high
    assert report.probed_ms > 0 < report.plain_ms


def test_fewer_steps_than_two_blocks_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        measure_overhead(SmallTraining, 5, sample_every=10)
