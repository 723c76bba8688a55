"""A small real model in training, kernels for it, and a seed host on both."""

from __future__ import annotations

import torch
from torch import nn

from schemas.catalogue import Stream
from tamiyo_stream.upstream.kasmina.host import SeedHost
from tamiyo_stream.upstream.kasmina.lifecycle import Limits
from tamiyo_stream.upstream.kasmina.site import SeedSite
from tests.upstream.tolaria.recording import RecordingPublisher

WIDTH = 12
#: Short enough for a whole life within a second.
LIMITS = Limits(training_steps=8, blending_steps=6, shadowing_steps=4, probation_steps=6, embargo_s=30.0)
SITES = (SeedSite("s1", "middle", specialization="dense"), SeedSite("s2", "first", risk_tolerance=0.8))


class Mlp(nn.Module):
    """Three layers with dropout; the output of ``middle`` is worked on in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.last(self.dropout(self.relu(self.middle(torch.tanh(self.first(x))))))


class Bottleneck(nn.Module):
    """A kernel that begins as the identity, and works on its input in place."""

    def __init__(self, width):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Linear(width, 4)
        self.up = nn.Linear(4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return x + self.up(self.relu(self.down(x)))


class Faulty(nn.Module):
    """A kernel that does what ``fault`` says from the call on that is given."""

    def __init__(self, width, fault, from_call=1):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.fault, self.from_call, self.calls = fault, from_call, 0

    def forward(self, x):
        self.calls += 1
        output = x + self.linear(x)
        return self.fault(output) if self.calls >= self.from_call else output


KERNELS = {"identity": Bottleneck, "linear": lambda width: nn.Linear(width, width)}


class Training:
    """A regression run. Equal seeds give equal runs; the random state is the global one, as in real life."""

    def __init__(self, make_optimizer=None, seed=0):
        torch.manual_seed(seed)
        self.model = Mlp()
        make_optimizer = make_optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=0.01))
        self.optimizer = make_optimizer(self.model.parameters())
        self._data = torch.Generator().manual_seed(seed)

    def step(self):
        x = torch.randn(16, 6, generator=self._data)
        loss = nn.functional.mse_loss(self.model(x), x[:, :3] * x[:, 3:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def weights(self):
        return torch.cat([tensor.detach().flatten() for tensor in self.model.parameters()])


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Garden:
    """A training run with a seed host, and everything it published."""

    def __init__(self, training=None, kernels=None, sites=SITES, **settings):
        self.training = training or Training()
        self.publisher = RecordingPublisher()
        self.clock = Clock()
        self.steps = 0
        self.host = SeedHost.attach(
            self.training.model,
            self.training.optimizer,
            sites,
            kernels or KERNELS,
            run_id="run",
            publisher=self.publisher,
            **{"limits": LIMITS, "clock": self.clock, **settings},
        )

    def train(self, steps=1, epoch=None):
        for _ in range(steps):
            self.steps += 1
            self.host.step(self.steps, self.training.step(), epoch)
        assert not self.host.errors
        return self

    def germinated(self, blueprint_id="identity", seed_id="s1", **settings):
        """Train until a baseline is known, then graft."""
        self.train(6)
        self.host.germinate(seed_id, blueprint_id, **settings)
        return self

    def until(self, stage, seed_id="s1", most=60):
        """Train until ``seed_id`` is in ``stage``."""
        for _ in range(most):
            if self.host.stage(seed_id) is stage:
                return self
            self.train()
        raise AssertionError(f"{seed_id} is {self.host.stage(seed_id).name} after {most} steps, not {stage.name}")

    @property
    def exports(self):
        return [message for stream, message in self.publisher.sent if stream is Stream.SEEDS]

    @property
    def packets(self):
        return [message for stream, message in self.publisher.sent if stream is Stream.TELEMETRY]

    def exported(self, seed_id="s1"):
        """Return the newest state of ``seed_id``."""
        return next(seed for seed in self.exports[-1].seeds if seed.seed_id == seed_id)

    def stages(self, seed_id="s1"):
        """Return the stages that were exported, repetitions left out."""
        seen = [seed.stage for export in self.exports for seed in export.seeds if seed.seed_id == seed_id]
        return [stage for position, stage in enumerate(seen) if position == 0 or seen[position - 1] is not stage]

    def events(self, code):
        return [event for packet in self.packets for event in packet.events if event.description == code]
