"""The training loop of the demo: an ordinary one, with the probe's three lines and the commands' three."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.demo.corpus import Corpus, standard_library_text
from tamiyo_stream.demo.transformer import CharTransformer, next_character_loss
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.kasmina.commands import Applied
from tamiyo_stream.upstream.kasmina.host import SeedHost
from tamiyo_stream.upstream.publisher import Publisher
from tamiyo_stream.upstream.tolaria.learning_rate import apply_optimizer_command
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe

BATCH = 16
LEARNING_RATE = 1e-3
STEPS_PER_EPOCH = 100
#: After the last step: how long to wait for the decisions still on their way.
LAST_COMMANDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A command as the training loop received it.

    ``effect`` says what it changed; ``refusal`` is the code where it was refused, else empty.
    """

    command: AdaptationCommand
    effect: str
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """The run after one step; ``loss`` is None while, after the last, it waits for commands.

    ``seeds``: stage by seed id.
    """

    step: int
    loss: float | None
    learning_rate: float
    step_ms: float
    arrivals: tuple[Arrival, ...]
    seeds: Mapping[str, str] = field(default_factory=dict)


class CharacterTraining:
    """The run itself: model, optimizer, data. Equal seeds give equal runs."""

    samples = BATCH

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self._text = standard_library_text()
        self._corpus = Corpus(self._text, seed)
        self.model = CharTransformer(len(self._corpus.alphabet))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)

    def example(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [samples, T]; the order of the run's own batches stays as it is."""
        return Corpus(self._text, seed=0).batch(samples, self.model.length)

    @staticmethod
    def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the run's loss of ``model`` on a batch."""
        return next_character_loss(model(inputs), targets)

    def step(self) -> Tensor:
        """Train one step and return its loss, which is known by then."""
        inputs, targets = self._corpus.batch(BATCH, self.model.length)
        loss = self.loss_of(self.model, inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss.item()
        return loss.detach()


class TrainingRun:
    """Trains for ``steps`` steps, publishing each and heeding the commands.

    Args:
        run_id: names the run. publisher: where everything goes; not closed here.
        inbox: where commands come from; closed with the run.
        seeds: the run's seeds; None: there is no Kasmina.
    """

    def __init__(
        self,
        run_id: str,
        training: CharacterTraining,
        publisher: Publisher,
        inbox: CommandInbox,
        seeds: SeedHost | None,
        *,
        steps: int,
    ) -> None:
        self.steps = steps
        self.answered: set[str] = set()
        self._training = training
        self._optimizer = training.optimizer
        self._inbox = inbox
        self._seeds = seeds
        self._probe = TolariaProbe.attach(training.model, training.optimizer, run_id=run_id, publisher=publisher)

    def __iter__(self) -> Iterator[Progress]:
        published: set[str] = set()
        for step in range(1, self.steps + 1):
            started = time.perf_counter()
            loss = self._training.step()
            epoch = step // STEPS_PER_EPOCH
            metrics = self._seeds.training_metrics() if self._seeds is not None else {}
            packet_id = self._probe.step(loss, samples=BATCH, epoch=epoch, metrics=metrics)
            if self._seeds is not None:
                self._seeds.step(step, loss, epoch)
            published |= {packet_id} if packet_id is not None else set()
            yield self._progress(step, float(loss), time.perf_counter() - started)
        deadline = time.monotonic() + LAST_COMMANDS_S
        while published - self.answered and time.monotonic() < deadline:
            time.sleep(0.02)
            yield self._progress(self.steps, None, 0.0)

    def close(self) -> None:
        """Take hooks and seeds off and stop listening."""
        self._probe.close()
        if self._seeds is not None:
            self._seeds.close()
        self._inbox.close()

    def _progress(self, step: int, loss: float | None, seconds: float) -> Progress:
        arrivals = tuple(self._heed(received.command) for received in self._inbox.receive())
        rate = float(self._optimizer.param_groups[0]["lr"])
        return Progress(step, loss, rate, seconds * 1000, arrivals, self._seed_stages())

    def _seed_stages(self) -> dict[str, str]:
        return (
            {name: stage.name for name, stage in self._seeds.stages().items()} if self._seeds is not None else {}
        )

    def _heed(self, command: AdaptationCommand) -> Arrival:
        """Act on ``command``: the learning rate here, within bounds; everything else is the seed host's."""
        self.answered |= {command.packet_id, *command.superseded_packet_ids}
        if command.optimizer_adjustment is not None:
            groups = self._optimizer.param_groups
            change = apply_optimizer_command(
                self._optimizer, command, [LEARNING_RATE] * len(groups), now_ns=time.time_ns()
            )
            refusal = "" if change.applied else str(change.refusal)
            return Arrival(command, refusal or f"lr {change.after[0]:.2e}", refusal)
        if self._seeds is None:
            return Arrival(command, "no change")
        result = self._seeds.apply(command, now_ns=time.time_ns())
        if isinstance(result, Applied):
            return Arrival(command, result.effect)
        return Arrival(command, f"{result.reason}: {result.detail}", result.reason)
