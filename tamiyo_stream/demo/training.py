"""The training loop of the demo: an ordinary one, with the probe's three lines and the commands' three."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.demo.corpus import Corpus, standard_library_text
from tamiyo_stream.demo.transformer import CharTransformer, next_character_loss
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.tolaria.learning_rate import apply_optimizer_command
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe

BATCH = 16
LEARNING_RATE = 1e-3
#: After the last step: how long to wait for the decisions still on their way.
LAST_COMMANDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A command as the training loop received it; ``effect`` says what it changed."""

    command: AdaptationCommand
    effect: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The run after one step; ``loss`` is None while, after the last, it waits for commands."""

    step: int
    loss: float | None
    learning_rate: float
    step_ms: float
    arrivals: tuple[Arrival, ...]


class CharacterTraining:
    """The run itself: model, optimizer, data. Equal seeds give equal runs."""

    samples = BATCH

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self._corpus = Corpus(standard_library_text(), seed)
        self.model = CharTransformer(len(self._corpus.alphabet))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)

    def step(self) -> torch.Tensor:
        """Train one step and return its loss, which is known by then."""
        inputs, targets = self._corpus.batch(BATCH, self.model.length)
        loss = next_character_loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss.item()
        return loss.detach()


class TrainingRun:
    """Trains for ``steps`` steps, publishing each and heeding the commands."""

    def __init__(self, run_id: str, redis_url: str, keyring: Keyring | None, *, steps: int, seed: int) -> None:
        self.steps = steps
        self.answered: set[str] = set()
        self._training = CharacterTraining(seed)
        self._optimizer = self._training.optimizer
        self._inbox = CommandInbox(redis_url, run_id, keyring)
        self._probe = TolariaProbe.attach(
            self._training.model, self._optimizer, run_id=run_id, redis_url=redis_url, keyring=keyring
        )

    def __iter__(self) -> Iterator[Progress]:
        published: set[str] = set()
        for step in range(1, self.steps + 1):
            started = time.perf_counter()
            loss = self._training.step()
            packet_id = self._probe.step(loss, samples=BATCH, epoch=step // 100)
            published |= {packet_id} if packet_id is not None else set()
            yield self._progress(step, float(loss), time.perf_counter() - started)
        deadline = time.monotonic() + LAST_COMMANDS_S
        while published - self.answered and time.monotonic() < deadline:
            time.sleep(0.02)
            yield self._progress(self.steps, None, 0.0)

    def close(self) -> None:
        """Send what is queued and stop listening."""
        self._probe.close()
        self._inbox.close()

    def _progress(self, step: int, loss: float | None, seconds: float) -> Progress:
        arrivals = tuple(self._heed(received.command) for received in self._inbox.receive())
        rate = float(self._optimizer.param_groups[0]["lr"])
        return Progress(step, loss, rate, seconds * 1000, arrivals)

    def _heed(self, command: AdaptationCommand) -> Arrival:
        """Act on ``command``: change the learning rate within bounds; nothing else has a target in this run."""
        self.answered |= {command.packet_id, *command.superseded_packet_ids}
        if command.optimizer_adjustment is None:
            return Arrival(command, "no change")
        base = [LEARNING_RATE] * len(self._optimizer.param_groups)
        change = apply_optimizer_command(self._optimizer, command, base, now_ns=time.time_ns())
        return Arrival(command, f"lr {change.after[0]:.2e}" if change.applied else str(change.refusal))
