"""A publisher that keeps what it is given, and a way to train a model under a probe."""

from __future__ import annotations

import torch

from schemas.catalogue import Stream
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe


class RecordingPublisher:
    """Keeps (stream, message) pairs in order."""

    def __init__(self):
        self.sent = []

    def publish(self, stream, message, **_):
        self.sent.append((stream, message))
        return True

    @property
    def states(self):
        return [message for stream, message in self.sent if stream is Stream.STATE]

    @property
    def blueprints(self):
        return [message for stream, message in self.sent if stream is Stream.BLUEPRINTS]


def attached(model, optimizer=None, **settings):
    """Return a probe with a recording publisher, and the publisher."""
    publisher = RecordingPublisher()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    probe = TolariaProbe.attach(model, optimizer, run_id="run", publisher=publisher, **settings)
    return probe, publisher


def train(model, loss_of, *, steps=1, optimizer=None, **settings):
    """Train ``steps`` steps under a probe that samples every step; return the state packets."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer, **{"sample_every": 1, **settings})
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        probe.step(loss=loss)
    assert not probe.statistics().errors
    probe.close()
    return publisher.states
