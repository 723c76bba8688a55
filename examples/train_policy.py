"""Trains a policy from field reports and hands it to the workers: the whole exchange of docs/simic.md, runnable.

    python examples/train_policy.py --out policy/tamiyo_gnn_v1.pt

Without ``--redis`` it records a short synthetic run on an embedded Redis first. With the Redis of a worker it
learns from the steps, commands and reports that lie there. The objective is deliberately simple, a value estimate
and the logarithm of the chosen action's probability times its advantage: replace :func:`loss_of`, keep the rest.
"""  # noqa: INP001 - a script, no package

from __future__ import annotations

import argparse
import random
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from torch_geometric.data import Batch, HeteroData

from schemas.catalogue import Stream
from schemas.entry import decode_entry, encode_entry
from schemas.enums import CommandType, FieldReportOutcome
from schemas.kasmina import SeedExport
from schemas.record import Message
from schemas.tamiyo import AdaptationCommand, FieldReport
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.bench.synthetic_run import synthetic_packet, synthetic_run, synthetic_tables
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.publishing import publish
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.network import TamiyoGNN, build_network
from tamiyo_stream.policy.actions import ACTION_TABLE
from tamiyo_stream.runs.intake import Verdict, take_seeds, take_state
from tamiyo_stream.runs.norms import observe
from tamiyo_stream.runs.state import EwmaNorm, RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings, load_settings
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis

#: Streams that a graph is built from, and what tells how it went on.
INPUTS = (Stream.BLUEPRINTS, Stream.SAFETY, Stream.SEEDS, Stream.STATE)
OUTCOMES = (Stream.COMMANDS, Stream.REPORTS)
#: Of the value in the loss, beside the policy (``domain.md`` B1).
VALUE_WEIGHT = 0.35


@dataclass(frozen=True, slots=True)
class Sample:
    """One decision: the graph it was made on, the slot that was chosen, what it gained (loss before - after)."""

    graph: HeteroData
    slot: int
    gain: float


@dataclass(frozen=True, slots=True)
class Recording:
    """What a trainer learns from; ``norms`` are those at the end, the next run's start."""

    samples: Sequence[Sample]
    norms: dict[str, EwmaNorm]
    run_ids: tuple[str, ...]


def entries(
    client: redis.Redis, settings: Settings, stream: Stream
) -> Iterator[tuple[tuple[int, ...], str, Message]]:
    """Yield the entries of ``stream``: place in time, event id, message. Bad signatures raise."""
    for partition in range(settings.partitions):
        replies: Any = client.xrange(settings.key(stream, partition))
        for entry_id, fields in replies:
            entry = decode_entry(fields, settings.keyring, stream=stream)
            yield tuple(map(int, entry_id.decode().split("-"))), entry.event_id, entry.message


def read_recording(client: redis.Redis, settings: Settings, registries: Registries) -> Recording:
    """Rebuild the graph of every step, as the worker did, and join it with the command and its report."""
    told = [message for stream in OUTCOMES for _, _, message in entries(client, settings, stream)]
    commands = {message.packet_id: message for message in told if isinstance(message, AdaptationCommand)}
    reports = {message.command_id: message for message in told if isinstance(message, FieldReport)}
    builder, tables = GraphBuilder(registries), Tables()
    runs: dict[str, RunState] = {}
    samples: list[Sample] = []
    for _, event_id, message in sorted(
        (entry for stream in INPUTS for entry in entries(client, settings, stream)), key=lambda entry: entry[0]
    ):
        match message:
            case Blueprint():
                tables.add_blueprint(message)
            case BlueprintSafetySheet():
                tables.add_sheet(message)
            case SeedExport():
                take_seeds(runs.setdefault(message.run_id, RunState(message.run_id)), event_id, message)
            case SystemStatePacket():
                run = runs.setdefault(message.run_id, RunState(message.run_id))
                if take_state(run, event_id, message) is not Verdict.ACCEPTED:
                    continue
                graph = builder.build(run, message, tables)
                observe(run.norms, builder.samples(run, message))
                command = commands.get(message.packet_id)
                report = reports.get(command.command_id) if command else None
                slot = command.annotations.get("policy_action", "") if command else ""
                if report is not None and "loss_delta" in report.metrics and slot.isdigit():
                    # A copy: the builder writes the next step into the same buffers.
                    data = graph.to_hetero_data().clone()
                    samples.append(Sample(data, int(slot), -report.metrics["loss_delta"]))
    newest = next(reversed(runs.values()), None)
    return Recording(samples, dict(newest.norms) if newest else {}, tuple(runs))


def loss_of(network: TamiyoGNN, batch: Batch, slots: Tensor, gains: Tensor) -> Tensor:
    """Return the loss on a batch: ``slots`` [B] int64 were chosen and brought ``gains`` [B]."""
    outputs = network(
        batch.x_dict, batch.edge_index_dict, batch.edge_attr_dict, batch["layer"].batch, batch_size=len(slots)
    )
    value = outputs["value_estimate"].squeeze(1)
    chosen = functional.log_softmax(outputs["policy_logits"], dim=1).gather(1, slots[:, None]).squeeze(1)
    loss: Tensor = VALUE_WEIGHT * functional.mse_loss(value, gains) - ((gains - value.detach()) * chosen).mean()
    return loss


def train(network: TamiyoGNN, samples: Sequence[Sample], steps: int, seed: int) -> list[float]:
    """Train ``network`` in place; return the loss of every step."""
    rng = random.Random(seed)  # noqa: S311 - a shuffle
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    network.train()
    losses = []
    for _ in range(steps):
        drawn = rng.sample(samples, min(8, len(samples)))
        slots = torch.tensor([sample.slot for sample in drawn])
        gains = torch.tensor([sample.gain for sample in drawn])
        loss = loss_of(network, Batch.from_data_list([sample.graph for sample in drawn]), slots, gains)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
    network.eval()
    return losses


def record_synthetic_run(client: redis.Redis, settings: Settings, steps: int = 12, seed: int = 0) -> None:
    """Publish a short run as upstream would, with the commands and reports that a worker would answer."""
    rng = random.Random(seed)  # noqa: S311 - made-up outcomes
    blueprint, _, seeds = synthetic_run(40, 120, seed)
    tables = synthetic_tables(blueprint)

    def send(stream: Stream, message: Message) -> None:
        fields: Any = encode_entry(message, settings.keyring)
        client.xadd(settings.key(stream), fields)

    for known in (*tables.hosts.values(), *tables.kernels.values()):
        send(Stream.BLUEPRINTS, known)
    for sheet in tables.sheets.values():
        send(Stream.SAFETY, sheet)
    send(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=1, seeds=seeds))
    for step in range(1, steps + 1):
        packet = synthetic_packet(blueprint, step=step, seed=seed + step)
        slot, command_id = rng.choice(ACTION_TABLE), str(uuid.UUID(int=rng.getrandbits(128), version=4))
        send(Stream.STATE, packet)
        send(
            Stream.COMMANDS,
            AdaptationCommand(
                command_id=command_id,
                command_type=CommandType.PAUSE,
                execution_deadline_ms=60_000,
                issued_at=packet.timestamp_ns,
                run_id=packet.run_id,
                packet_id=packet.packet_id,
                global_step=step,
                annotations={"policy_action": str(slot.index), "policy_action_name": slot.action.value},
            ),
        )
        send(
            Stream.REPORTS,
            FieldReport(
                report_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                command_id=command_id,
                training_run_id=packet.run_id,
                outcome=FieldReportOutcome.SUCCESS,
                metrics={"loss_delta": rng.gauss(-0.01, 0.02)},
                issued_at=packet.timestamp_ns,
                tamiyo_policy_version="tamiyo_gnn_v1",
            ),
        )


def starting_point(parent: Path | None, settings: Settings) -> tuple[TamiyoGNN, Registries, str]:
    """Return network, registries and digest of the policy to train further, or an untrained one.

    The registries are the parent's: categories keep their numbers, new ones continue them.
    """
    registries = Registries()
    if parent is None:
        return build_network(), registries, ""
    checkpoint = read_checkpoint(parent, Trust(keyring=settings.keyring))
    for name, snapshot in checkpoint.registries.items():
        registries[name].adopt(snapshot)
    return checkpoint.network(), registries, checkpoint.digest


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or read, train, write, verify, publish; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--redis", help="Redis with a recording; without it one is made on an embedded Redis")
    parser.add_argument("--out", type=Path, default=Path("tamiyo_gnn_v1.pt"), help="checkpoint to write")
    parser.add_argument("--parent", type=Path, help="checkpoint to train further")
    parser.add_argument("--version", default="example-1", help="policy version to write")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        url = options.redis or stack.enter_context(EmbeddedRedis()).url
        settings = load_settings(redis_url=url)
        client = stack.enter_context(redis.Redis.from_url(url))
        if not options.redis:
            record_synthetic_run(client, settings)
        network, registries, parent_digest = starting_point(options.parent, settings)
        recording = read_recording(client, settings, registries)
        if not recording.samples:
            console.print(
                f"no step on {url} has both a command and a report with loss_delta: nothing to learn from"
            )
            return 1
        losses = train(network, recording.samples, options.steps, seed=0)
        console.print(f"{len(recording.samples)} samples, loss {losses[0]:.4f} → {losses[-1]:.4f}")
        checkpoint = Checkpoint.of(
            network,
            policy_version=options.version,
            provenance=Provenance("examples/train_policy.py", recording.run_ids, parent_digest),
            registries=registries.snapshots(),
            norms=recording.norms,
        )
        digest = write_checkpoint(options.out, checkpoint, settings.keyring)
        read_checkpoint(options.out, Trust(sha256=digest, keyring=settings.keyring))
        console.print(f"wrote {options.out}, verified: sha256 {digest}")
        return publish(
            options.out, client, stream=settings.key(Stream.POLICY), keyring=settings.keyring, console=console
        )


if __name__ == "__main__":
    sys.exit(main())
