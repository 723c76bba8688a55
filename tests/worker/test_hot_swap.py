"""Policies are replaced while the worker decides: nothing is lost, doubled or mixed; what fails is taken back."""

from __future__ import annotations

import gc
import hashlib
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from anyio import to_thread
from msgspec import structs

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.record import Message
from schemas.simic import PolicyUpdate
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryEvent, TelemetryPacket
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.document import document_of
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.refusal import Reason
from tamiyo_stream.checkpoints.writing import encode_checkpoint, write_checkpoint
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.synthetic import SMALL, synthetic_graph
from tamiyo_stream.model.config import ARCHITECTURE_VERSION, TamiyoGNNConfig
from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import build_network
from tamiyo_stream.worker.connection import open_client
from tamiyo_stream.worker.memory import release_freed_memory
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.service import NORMS_FILE, Stages, StartFailed, build_engine, run_worker, serve
from tests.checkpoints.samples import TINY, file_of
from tests.graph.samples import sample_blueprint

FIRST = "first"
#: A swap takes fewer steps than this, however slow the machine.
MOST_STEPS = 150
HOST = sample_blueprint()


def checkpoint_of(
    seed: int,
    *,
    config: TamiyoGNNConfig = TINY,
    spoil: Callable[[torch.nn.Module], None] | None = None,
    **fields,
) -> Checkpoint:
    network = build_network(config, seed=seed)
    if spoil is not None:
        with torch.no_grad():
            spoil(network)
    values = {
        "policy_version": f"policy-{seed}",
        "provenance": Provenance("tests"),
        "registries": Registries().snapshots(),
        **fields,
    }
    return Checkpoint.of(network, **values)


async def made(seed: int, **fields) -> Checkpoint:
    """A checkpoint, built where it does not block the event loop."""
    return await to_thread.run_sync(partial(checkpoint_of, seed, **fields))


def update_of(data: bytes, policy_id: str, issued_at: int, **fields) -> PolicyUpdate:
    values = {
        "policy_id": policy_id,
        "issued_at": issued_at,
        "tamiyo_policy_version": ARCHITECTURE_VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "payload": data,
        **fields,
    }
    return PolicyUpdate(**values)


def read_tiny(update: PolicyUpdate, registries: Registries) -> Checkpoint:
    """As ``read_update``, for the tests' dimensions."""
    assert update.payload is not None
    trust = Trust(sha256=update.sha256, size_bytes=update.size_bytes)
    return read_checkpoint(update.payload, trust, registries=registries, config=TINY)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tiny_engine() -> InferenceEngine:
    network = build_network(TINY, seed=0)
    engine = InferenceEngine(network, policy_version=FIRST, policy_digest=state_digest(network))
    engine.warm_up()
    return engine


@pytest.fixture
def swapping(settings, monkeypatch):
    """Context manager that runs a worker with a tiny network, warmed up briefly; leaving it drains."""
    monkeypatch.setattr("tamiyo_stream.inference.engine._WARM_UP_BATCHES", ((SMALL,),))

    @asynccontextmanager
    async def run(**changes) -> AsyncIterator[Stages]:
        quick = {"shadow_graphs": 2, "trial_decisions": 3, "worker_id": "w1"}
        mine = settings.model_copy(update=quick | changes)
        registries = await to_thread.run_sync(Registries, mine.var_dir / "registries")
        norms = await to_thread.run_sync(NormsKeeper, mine.var_dir / NORMS_FILE)
        engine = await to_thread.run_sync(tiny_engine)
        stages = Stages(registries, norms, engine, open_client(mine), open_client(mine), read_tiny)
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(serve, mine, stages, stop)
            try:
                yield stages
            finally:
                stop.set()

    return run


class Follower:
    """What ``pick`` takes from the messages of a stream; each entry is read once and not kept."""

    def __init__(self, upstream, stream: Stream, pick: Callable[[Message], list]) -> None:
        self._upstream, self._stream, self._pick, self._position = upstream, stream, pick, "-"
        self._found: list = []

    async def read(self) -> list:
        key, keyring = self._upstream.settings.key(self._stream), self._upstream.settings.keyring
        for entry_id, fields in await self._upstream.bus.xrange(key, min=self._position):
            self._position = f"({entry_id.decode()}"
            self._found += self._pick(decode_entry(fields, keyring).message)
        return self._found


def policy_events(packet: TelemetryPacket) -> list[TelemetryEvent]:
    return [event for event in packet.events if event.description.startswith("policy_")]


def without_coverage(command: AdaptationCommand) -> list[AdaptationCommand]:
    notes = {name: note for name, note in command.annotations.items() if name.startswith(("policy_", "risk_"))}
    return [structs.replace(command, annotations=notes)]


class Training:
    """A run that steps as soon as its last step is answered."""

    def __init__(self, upstream, run_id: str = "run") -> None:
        self.upstream, self.run_id, self.steps = upstream, run_id, 0
        self._commands = Follower(upstream, Stream.COMMANDS, without_coverage)
        self._events = Follower(upstream, Stream.TELEMETRY, policy_events)

    async def commands(self) -> list[AdaptationCommand]:
        return [command for command in await self._commands.read() if command.run_id == self.run_id]

    async def events(self, name: str) -> list[dict[str, str]]:
        return [event.attributes for event in await self._events.read() if event.description == name]

    async def step(self, **fields) -> AdaptationCommand:
        self.steps += 1
        if self.steps == 1:
            await self.upstream.publish(Stream.BLUEPRINTS, HOST)
        names = {"blueprint_id": HOST.blueprint_id, "blueprint_version": HOST.blueprint_version}
        await self.upstream.step(self.steps, run_id=self.run_id, **names, **fields)

        async def answered() -> bool:
            return len(await self.commands()) >= self.steps

        await self.upstream.until(answered, f"step {self.steps} of {self.run_id} is answered")
        return (await self.commands())[-1]

    async def until_event(self, name: str, count: int = 1) -> dict[str, str]:
        """Step on until the event was told so often; return its particulars."""
        for _ in range(MOST_STEPS):
            found = await self.events(name)
            if len(found) >= count:
                return found[count - 1]
            await self.step()
        pytest.fail(f"{name} was not told within {MOST_STEPS} steps")


def digests(commands: list[AdaptationCommand]) -> list[str]:
    """The policies in the order in which they decided."""
    return [digest for digest, _ in groupby(command.annotations["policy_digest"] for command in commands)]


async def publish(upstream, checkpoint: Checkpoint, number: int, **fields) -> PolicyUpdate:
    data = await to_thread.run_sync(encode_checkpoint, checkpoint, ".safetensors")
    update = update_of(data, f"p{number}", number, **fields)
    await upstream.publish(Stream.POLICY, update)
    return update


async def test_a_good_update_decides_from_some_step_on_and_no_step_is_lost_or_doubled(upstream, swapping) -> None:
    second = await made(2)
    async with swapping() as stages:
        training = Training(upstream)
        await training.step()
        await publish(upstream, second, 2)
        applied = await training.until_event("policy_update_applied")
        await training.until_event("policy_promoted")
    commands = await training.commands()
    assert digests(commands) == [stages.engine.policy_digest, second.digest]
    assert [command.global_step for command in commands] == list(range(1, training.steps + 1))
    assert (applied["policy_id"], applied["version"], applied["digest"]) == ("p2", "policy-2", second.digest)
    assert 0.0 <= float(applied["agreement"]) <= 1.0
    assert await upstream.pending() == 0


async def test_the_shadow_evaluation_is_published_before_the_swap(upstream, swapping) -> None:
    async with swapping(shadow_graphs=3):
        training = Training(upstream)
        await publish(upstream, await made(0, policy_version="renamed"), 2)  # the same weights are no swap
        await publish(upstream, await made(3), 3)
        await training.until_event("policy_update_applied")
    (packet,) = [
        p for p in await upstream.telemetry() if p.events and p.events[0].description == "policy_shadow_report"
    ]
    found = {metric.name.removeprefix("tamiyo.policy.shadow."): metric.value for metric in packet.metrics}
    assert found["graphs"] == 3
    assert 0 <= found["agreement"] <= 1
    assert found["value_drift"] > 0
    assert 0 < found["risk_drift"] < 1
    assert found["latency_ratio"] > 0


def _renumbered() -> dict[str, dict[str, int]]:
    registries = Registries()
    registries.index("seed", "a seed that this worker calls otherwise")
    return registries.snapshots()


def _not_finite() -> PolicyUpdate:
    checkpoint = checkpoint_of(5)
    state = {name: torch.full_like(value, math.nan) for name, value in checkpoint.state.items()}
    return update_of(file_of(".pt", document_of(checkpoint), state), "bad", 9)


def _overflowing(network: torch.nn.Module) -> None:
    """Finite weights whose outputs are not."""
    for parameter in network.parameters():
        parameter.fill_(3e38)


def _refused(**fields) -> Callable[[], PolicyUpdate]:
    """Makes an update whose checkpoint or announcement has these ``fields``."""
    announced = {name: fields.pop(name) for name in ("sha256", "size_bytes") if name in fields}
    return lambda: update_of(encode_checkpoint(checkpoint_of(5, **fields), ".pt"), "bad", 9, **announced)


BAD: dict[str, Callable[[], PolicyUpdate]] = {
    Reason.DIGEST_MISMATCH: _refused(sha256="0" * 64),
    Reason.SIZE: _refused(size_bytes=1),
    Reason.NOT_A_CHECKPOINT: lambda: update_of(b"nothing", "bad", 9),
    Reason.UNSAFE_PICKLE: lambda: update_of(b"\x80\x04N.", "bad", 9),
    Reason.CONFIG: _refused(config=replace(TINY, hidden_width=16)),
    Reason.REGISTRY_RENUMBERED: _refused(registries=_renumbered()),
    Reason.NOT_FINITE: _not_finite,
    "non_finite_output": _refused(spoil=_overflowing),
}


@pytest.mark.parametrize("reason", BAD)
async def test_a_bad_update_is_refused_with_its_reason_and_the_old_policy_decides_on(
    upstream, swapping, reason
) -> None:
    async with swapping() as stages:
        stages.registries.index("seed", "seed-0")
        training = Training(upstream)
        await training.step()
        await upstream.publish(Stream.POLICY, await to_thread.run_sync(BAD[reason]))
        refused = await training.until_event("policy_update_rejected")
        await training.step()
    assert (refused["policy_id"], refused["reason"]) == ("bad", reason)
    assert refused["detail"]
    assert digests(await training.commands()) == [stages.engine.policy_digest]
    assert await training.events("policy_update_applied") == []


async def test_after_a_refusal_the_next_good_update_is_applied(upstream, swapping) -> None:
    second = await made(2)
    async with swapping():
        training = Training(upstream)
        await upstream.publish(Stream.POLICY, update_of(b"nothing", "bad", 1))
        await training.until_event("policy_update_rejected")
        await publish(upstream, second, 2)
        await training.until_event("policy_promoted")
    assert digests(await training.commands())[-1] == second.digest


async def test_the_registries_of_a_policy_are_adopted_before_it_decides(upstream, swapping) -> None:
    registries = Registries()
    registries.index("seed", "a seed it was trained on")
    async with swapping() as stages:
        training = Training(upstream)
        await publish(upstream, await made(2, registries=registries.snapshots()), 2)
        await training.until_event("policy_update_applied")
        assert stages.registries["seed"].entries == {"a seed it was trained on": 1}


async def test_a_restarted_worker_begins_with_the_newest_usable_update_and_with_no_older_one(
    upstream, swapping
) -> None:
    second, third = await made(2), await made(3)
    await publish(upstream, second, 2)
    await publish(upstream, third, 3)
    await upstream.publish(Stream.POLICY, update_of(b"nothing", "bad", 4))
    await publish(upstream, await made(1), 1)  # issued before the others, read last
    async with swapping():
        training = Training(upstream)
        await training.step()
    commands = await training.commands()
    assert digests(commands) == [third.digest]
    assert commands[0].annotations["policy_version"] == "policy-3"
    assert [e["policy_id"] for e in await training.events("policy_update_applied")] == ["p3"]
    assert [e["policy_id"] for e in await training.events("policy_update_rejected")] == ["bad"]


async def test_with_a_canary_share_only_some_runs_see_the_policy_until_it_is_promoted(upstream, swapping) -> None:
    second = await made(2)
    async with swapping(canary_share=0.5, trial_decisions=3) as stages:
        inside, outside = Training(upstream, "canary-0"), Training(upstream, "canary-2")  # hashes 0.11 and 0.95
        await publish(upstream, second, 2)
        while not await inside.events("policy_promoted"):
            await inside.step()
            last_outside = await outside.step()
        assert digests(await inside.commands()) == [stages.engine.policy_digest, second.digest]
        await outside.step()
    assert last_outside
    changed = next(c for c in await inside.commands() if c.annotations["policy_digest"] == second.digest)
    of_outside = [c for c in await outside.commands() if c.annotations["policy_digest"] == second.digest]
    assert digests(await outside.commands()) == [stages.engine.policy_digest, second.digest]
    assert of_outside[0].issued_at > changed.issued_at
    assert of_outside[0].global_step >= changed.global_step + 2


def _overflowing_on_an_extreme_loss(network: torch.nn.Module) -> None:
    """Finite on what warm-up and shadow see; a loss six standard deviations off is too much."""
    slot = NODES["context"].slots["loss_mean"].start
    network.encoders["context"].linear.weight[0, slot] = torch.finfo(torch.float32).max ** 0.5 / 4.5  # its square


async def test_a_policy_whose_answer_is_no_number_is_taken_back_and_the_old_one_answers_that_step(
    upstream, swapping
) -> None:
    faulty = await made(2, spoil=_overflowing_on_an_extreme_loss)
    async with swapping(trial_decisions=MOST_STEPS) as stages:
        training = Training(upstream)
        await publish(upstream, faulty, 2)
        await training.until_event("policy_update_applied")
        while (await training.step()).annotations["policy_digest"] != faulty.digest:
            pass
        fatal = await training.step(training_loss=1e6)
        told = await training.until_event("policy_rolled_back")
        await training.step()
    assert fatal.annotations["policy_digest"] == stages.engine.policy_digest
    assert (told["policy_id"], told["reason"]) == ("p2", "non_finite_output")
    first = stages.engine.policy_digest
    assert digests(await training.commands()) == [first, faulty.digest, first]
    reasons = {command.annotations["risk_reason"] for command in await training.commands()}
    assert "non_finite_output" not in reasons


async def test_a_policy_that_was_taken_back_does_not_return_with_a_restart(upstream, swapping) -> None:
    second, faulty = await made(2), await made(3, spoil=_overflowing_on_an_extreme_loss)
    async with swapping(trial_decisions=2):
        training = Training(upstream)
        await publish(upstream, second, 2)
        await training.until_event("policy_promoted")
    async with swapping(trial_decisions=MOST_STEPS, worker_id="w2"):
        await publish(upstream, faulty, 3)
        await training.until_event("policy_update_applied", count=3)  # p2, p2 at the restart, p3
        while not await training.events("policy_rolled_back"):
            await training.step(training_loss=1e6)
    async with swapping(worker_id="w3"):
        last = await training.step()
    assert last.annotations["policy_digest"] == second.digest


async def test_twenty_swaps_under_load_lose_double_and_mix_nothing_and_leave_no_engine_behind(
    upstream, swapping
) -> None:
    swaps = 20
    checkpoints = [await made(seed) for seed in range(101, 101 + swaps)]
    trainings = [Training(upstream, f"run-{number}") for number in range(2)]
    over = anyio.Event()

    async def train(training: Training) -> None:
        while not over.is_set():
            await training.step()

    async def swap() -> None:
        for number, checkpoint in enumerate(checkpoints, 1):
            await publish(upstream, checkpoint, number)

            async def promoted(count: int = number) -> bool:
                return len(await trainings[0].events("policy_promoted")) == count

            await upstream.until(promoted, f"policy {number} is promoted")
        over.set()

    async with swapping(shadow_graphs=1, trial_decisions=4) as stages:
        async with anyio.create_task_group() as group:
            for training in trainings:
                group.start_soon(train, training)
            group.start_soon(swap)
        for training in trainings:
            await training.step()
        engines = [thing for thing in gc.get_objects() if type(thing) is InferenceEngine]
        kept = {engine.policy_digest for engine in engines} & {checkpoint.digest for checkpoint in checkpoints}
        assert kept == {checkpoints[-1].digest}
    expected = [stages.engine.policy_digest, *(checkpoint.digest for checkpoint in checkpoints)]
    for training in trainings:
        commands = await training.commands()
        assert [command.global_step for command in commands] == list(range(1, training.steps + 1))
        found = digests(commands)
        assert found == [digest for digest in expected if digest in found]  # in order, none ever again
        assert found[-1] == expected[-1]
    assert await trainings[0].events("policy_rolled_back") == []
    assert await upstream.pending() == 0


def test_a_worker_starts_with_the_policy_of_a_checkpoint(settings, tmp_path) -> None:
    registries = Registries()
    registries.index("seed", "a seed it was trained on")
    checkpoint = checkpoint_of(4, config=TamiyoGNNConfig(), registries=registries.snapshots())
    path = tmp_path / "start.pt"
    write_checkpoint(path, checkpoint, settings.keyring)
    live = Registries()
    engine = build_engine(settings.model_copy(update={"checkpoint": path}), live)
    assert (engine.policy_version, engine.policy_digest) == ("policy-4", checkpoint.digest)
    assert live["seed"].entries == registries["seed"].entries


@pytest.mark.parametrize(
    ("content", "reason"), [(None, Reason.UNREADABLE), (b"nothing", Reason.MISSING_SIGNATURE)]
)
def test_a_worker_does_not_start_with_a_checkpoint_it_cannot_use(settings, tmp_path, content, reason) -> None:
    path = tmp_path / "start.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartFailed, match=rf"TAMIYO_CHECKPOINT: refused \({reason}\)"):
        run_worker(settings.model_copy(update={"checkpoint": path}))


def test_the_memory_of_replaced_engines_goes_back_to_the_system() -> None:
    """Engines of the real size; without the release the heap keeps their holes, several megabytes a time."""
    resident, serving = [], None
    for seed in range(10):
        network = build_network(seed=seed)
        candidate = InferenceEngine(network, policy_version="", policy_digest=str(seed))
        candidate.infer([synthetic_graph(SMALL)])
        serving = candidate  # as at a swap: both are there for a while
        del network, candidate
        release_freed_memory()
        resident.append(resident_bytes())
    assert serving is not None
    settled = resident[2:]
    assert np.polyfit(range(len(settled)), settled, 1)[0] <= 1 << 20  # bytes per swap
