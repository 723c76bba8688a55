"""A reference upstream as a process of its own: publishes the states of several runs until Redis has them all.

``python -m tests.chaos.upstream URL PLAN`` with the plan as JSON (:class:`Plan`). Every run gets the same numbers,
so that after all the runs' norms must be equal, whatever happened on the way. A publisher that does not know
whether an entry arrived sends it again under the same event id, as the real one does.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas.catalogue import Stream
from schemas.entry import EntryFields, encode_entry
from schemas.partitions import partition_of, stream_key
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tests.chaos.workers import ROOT

SECRET = "a secret of the tests"
KEYRING = Keyring({"k1": SECRET.encode()})
RETRY_S = 0.05
JUMPS_NS = (0, 300 * 10**9, -300 * 10**9, 30 * 10**9)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to publish.

    Attributes:
        runs: how many, by ``name`` and number. first, steps: of each, from step ``first`` on.
        rate: entries per second, 0 = flat out.
        copies: each entry is sent up to so often. window: entries are shuffled within so many; 1 = in order.
        poison: share of entries that no reader can use, beside the good ones.
        clock_jumps: timestamps leap by minutes, as of a host whose clock is being set.
    """

    seed: int
    runs: int = 3
    first: int = 1
    steps: int = 100
    rate: float = 100.0
    partitions: int = 2
    copies: int = 1
    window: int = 1
    poison: float = 0.0
    clock_jumps: bool = False
    name: str = "run"

    @property
    def run_ids(self) -> list[str]:
        """The runs."""
        return [f"{self.name}{number}" for number in range(self.runs)]


@dataclass(frozen=True, slots=True)
class Item:
    """One entry to publish."""

    key: str
    fields: EntryFields


def items(plan: Plan) -> Iterator[Item]:
    """Yield what ``plan`` publishes, in order. The same plan gives the same entries."""
    dice = random.Random(plan.seed)
    pending: list[Item] = []
    for step in range(plan.first, plan.first + plan.steps):
        for run_id in plan.run_ids:
            item = Item(_key(plan, run_id), encode_entry(_packet(plan, dice, run_id, step), KEYRING))
            pending += [item] * dice.randint(1, plan.copies)
            if dice.random() < plan.poison:
                pending.append(Item(item.key, _poisoned(dice, item.fields)))
        while len(pending) >= plan.window:
            yield pending.pop(dice.randrange(min(plan.window, len(pending))))
    dice.shuffle(pending)
    yield from pending


def _key(plan: Plan, run_id: str) -> str:
    partition = partition_of(run_id, plan.partitions)
    return stream_key(Stream.STATE, partition=partition, partitions=plan.partitions)


def _packet(plan: Plan, dice: random.Random, run_id: str, step: int) -> SystemStatePacket:
    jump = dice.choice(JUMPS_NS) if plan.clock_jumps and dice.random() < 0.1 else 0
    return SystemStatePacket(
        run_id=run_id,
        packet_id=f"{run_id}-{step}",
        global_step=step,
        timestamp_ns=10**18 + step * 10**7 + jump,
        training_loss=2.0 / (1 + step % 17),
        training_metrics={"gradient_norm": 1.0 + step % 5},
    )


def _poisoned(dice: random.Random, fields: EntryFields) -> EntryFields:
    """Return ``fields`` made unusable, one way or another."""
    match dice.randrange(6):
        case 0:
            return {**fields, b"signature": b"forged"}
        case 1:
            return {**fields, b"payload": fields[b"payload"][:-3]}
        case 2:
            return {**fields, b"v": b"99"}
        case 3:
            return {**fields, b"type": b"Nonsense"}
        case 4:
            return {b"hello": b"world"}
        case _:
            unsigned = {name: value for name, value in fields.items() if name != b"signature"}
            return {**unsigned, b"payload": b"\xdd\xff\xff\xff\xff"}


def publish(url: str, plan: Plan) -> int:
    """Publish ``plan`` in this process; return how many entries Redis took."""
    client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5)
    started, sent = time.monotonic(), 0
    for item in items(plan):
        while True:
            try:
                client.xadd(item.key, item.fields)  # type: ignore[arg-type]  # redis-py's invariant dict of unions
            except (redis.RedisError, OSError):
                time.sleep(RETRY_S)
            else:
                break
        sent += 1
        if plan.rate:
            time.sleep(max(0.0, started + sent / plan.rate - time.monotonic()))
    client.close()
    return sent


def start(url: str, plan: Plan) -> subprocess.Popen[str]:
    """Start a process that publishes ``plan``."""
    arguments = [sys.executable, "-m", "tests.chaos.upstream", url, json.dumps(asdict(plan))]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    sys.stdout.write(f"{publish(sys.argv[1], Plan(**json.loads(sys.argv[2])))}\n")
