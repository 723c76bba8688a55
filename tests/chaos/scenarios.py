"""The scenarios: one fault each, against workers at work; afterwards the streams must add up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.ledger import Ledger
from tests.chaos.proxy import Fault, FaultyProxy
from tests.chaos.rig import Rig, Unsettled
from tests.chaos.upstream import Plan

RATE = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a scenario did and what came of it. ``recovery_s`` is the longest time without a command after a fault.

    ``refused`` counts packets without a command but with their refusal on the record. ``state_differs`` names the
    runs whose norms or last step are not those of a run without faults.
    """

    scenario: str
    faults: int
    published: int
    decided: int
    superseded: int
    refused: int
    dead_letters: int
    lost: int
    doubled: int
    recovery_s: float
    state_differs: tuple[str, ...] = ()
    figures: dict[str, float] | None = None
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, doubled, or left undone."""
        return not (self.lost or self.doubled or self.state_differs or self.failure)


@dataclass(frozen=True, slots=True)
class Injected:
    """Faults that were injected, and how long the workers needed afterwards."""

    faults: int
    recovery_s: float
    ledger: Ledger | None = None
    figures: dict[str, float] | None = None


Scenario = Callable[[Rig, random.Random, int], Injected]


def kills(rig: Rig, dice: random.Random, size: int) -> Injected:
    """SIGKILL workers at random moments while they decide; a new one follows each."""
    rig.begin(workers=2)
    rig.publish(_plan(rig, dice, steps=_steps(size, per_fault=35)))
    longest = 0.0
    for _ in range(size):
        rig.progress(dice.randint(1, 12))
        time.sleep(dice.uniform(0.0, 0.05))
        dice.choice(rig.nursery.alive()).kill()
        rig.nursery.start()
        longest = max(longest, rig.progress())
    return Injected(size, longest)


def redis_restarts(rig: Rig, dice: random.Random, size: int) -> Injected:
    """SIGKILL Redis and start it again on its data."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size)))
    longest = 0.0
    for _ in range(size):
        rig.progress(dice.randint(1, 12))
        rig.kill_redis(emptied=False)
        time.sleep(dice.uniform(0.0, 0.5))
        rig.start_redis()
        longest = max(longest, rig.progress())
    return Injected(size, longest)


def redis_emptied(rig: Rig, dice: random.Random, size: int) -> Injected:
    """SIGKILL Redis, take its data away; upstream sends its newest steps again, not knowing which arrived."""
    rig.begin()
    longest, decided = 0.0, set[str]()
    for number in range(size + 1):
        rig.publish(_plan(rig, dice, first=max(1, 20 * number - 9), steps=30))
        longest = max(longest, rig.progress())
        answers = rig.settle().answers
        if again := decided & answers.keys():
            raise Unsettled(f"decided again after Redis was emptied: {sorted(again)[:9]}")
        decided |= answers.keys()
        rig.wait_until_shared()
        if number < size:
            rig.kill_redis(emptied=True)
            rig.start_redis()
    return Injected(size, longest)


def group_deleted(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Delete the consumer group under the workers' hands."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size)))
    longest = 0.0
    for _ in range(size):
        rig.progress(dice.randint(1, 12))
        rig.delete_groups()
        longest = max(longest, rig.progress())
    return Injected(size, longest)


NETWORK_FAULTS = (
    Fault(latency_s=0.05, jitter_s=0.03),
    Fault(slice=1),
    Fault(reset=0.02),
    Fault(latency_s=0.01, slice=1024, reset=0.005),
)


def network(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Delay, slice, reset and silence the workers' connections."""
    with FaultyProxy(rig.port, dice.randrange(2**32)) as proxy:
        rig.begin(TAMIYO_REDIS_URL=rig.url(proxy.port))
        rig.publish(_plan(rig, dice, steps=_steps(size)))
        rig.progress(5)
        longest, silenced = 0.0, 0
        for number in range(size):
            proxy.fault = NETWORK_FAULTS[number % len(NETWORK_FAULTS)]
            longest = max(longest, rig.progress(3))
            proxy.fault = Fault()
            if number % len(NETWORK_FAULTS) == 0:
                silenced += proxy.silence()
                longest = max(longest, rig.progress())
        ledger = rig.settle()
        figures = {"resets": float(proxy.resets), "half_open": float(silenced)}
        rig.nursery.kill_all()
    rig.nursery.start()
    return Injected(size + silenced, longest, ledger, figures)


def duplicates(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Every entry is sent one to five times."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size), copies=5))
    return Injected(size, 0.0)


def shuffled(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Entries are sent one to three times and shuffled: what comes too late is refused on the record."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size), copies=3, window=64))
    return Injected(size, 0.0)


def poison(rig: Rig, dice: random.Random, size: int) -> Injected:
    """One entry in a hundred cannot be used."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size, per_fault=60), poison=0.02))
    return Injected(size, 0.0)


def clock_jumps(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Upstream's clock leaps by minutes, forwards and back."""
    rig.begin()
    rig.publish(_plan(rig, dice, steps=_steps(size), clock_jumps=True))
    return Injected(size, 0.0)


def overload(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Far more steps than can be decided: the newest are, the others are superseded, and memory stays bounded."""
    (worker,) = rig.begin(workers=1)
    rig.publish(_plan(rig, dice, steps=30))
    rig.finish_publishing()
    rig.settle()
    before = worker.memory_mb()
    rig.publish(_plan(rig, dice, first=31, steps=_steps(size, per_fault=150), rate=0))
    began = time.monotonic()
    ledger = rig.settle()
    growth = worker.memory_mb() / before
    if growth > 1.1:
        raise Unsettled(f"memory grew from {before:.0f} MiB by {growth - 1:.0%} under overload")
    seconds = time.monotonic() - began
    return Injected(size, 0.0, ledger, {"memory_growth": growth, "steps_per_s": len(ledger.published) / seconds})


def disk_full(rig: Rig, dice: random.Random, size: int) -> Injected:
    """No file of the worker can grow: it decides on, and writes its tables as soon as there is room."""
    rig.begin(workers=0)
    worker = rig.nursery.start(file_limit=16, TAMIYO_FLUSH_INTERVAL_S="0.2")
    rig.publish(_plan(rig, dice, steps=_steps(size)))
    rig.progress(20)
    tables = rig.var_dir(worker) / "gnn_norms.json"
    if tables.exists():
        raise Unsettled("the disk was not full")
    worker.lift_file_limit()
    began = time.monotonic()
    rig.until(tables.exists, "the tables are written")
    return Injected(1, time.monotonic() - began)


def joins_and_leaves(rig: Rig, dice: random.Random, size: int) -> Injected:
    """Workers join, and the older one drains and leaves; partitions move between them under load."""
    rig.begin(workers=1)
    longest, joining = 0.0, 40
    for number in range(size):
        first = 2 * joining * number + 1
        (known,) = rig.nursery.alive()
        rig.publish(_plan(rig, dice, first=first, steps=joining))
        rig.nursery.start()
        rig.wait_until_shared()
        rig.finish_publishing()
        rig.publish(_plan(rig, dice, first=first + joining, steps=joining))
        rig.progress(dice.randint(1, 12))
        known.terminate()
        longest = max(longest, rig.progress())
        rig.until(lambda: len(rig.nursery.alive()) == 1, "the older worker has drained and left")
        rig.finish_publishing()
    return Injected(2 * size, longest)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        kills,
        redis_restarts,
        redis_emptied,
        group_deleted,
        network,
        duplicates,
        shuffled,
        poison,
        clock_jumps,
        overload,
        disk_full,
        joins_and_leaves,
    )
}
#: Scenarios after which a run's state is not that of a clean run: steps were refused, or Redis lost some.
OTHER_STATE = {"redis_emptied", "shuffled", "overload"}


def run_scenario(rig: Rig, name: str, seed: int, size: int) -> Result:
    """Run one scenario and prove the invariants from the streams. A failure is in the result, never raised."""
    dice = random.Random(f"{name}:{seed}")
    try:
        injected = SCENARIOS[name](rig, dice, size)
        ledger = rig.settle()
        differs = [] if name in OTHER_STATE else rig.differing_runs()
    except (AssertionError, OSError) as error:
        return Result(name, size, 0, 0, 0, 0, 0, 0, 0, 0.0, failure=str(error))
    answered = sum(ledger.answers.values())
    return Result(
        scenario=name,
        faults=injected.faults,
        published=len(ledger.published),
        decided=ledger.decided,
        superseded=answered - ledger.decided,
        refused=len(ledger.refused.keys() - ledger.answers.keys()),
        dead_letters=sum(ledger.letters.values()),
        lost=len(ledger.lost) + ledger.unrecorded,
        doubled=len(ledger.doubled) + sum(count - 1 for count in ledger.letters.values()),
        recovery_s=round(injected.recovery_s, 3),
        state_differs=tuple(differs),
        figures=injected.figures,
    )


def _steps(size: int, per_fault: int = 20) -> int:
    return max(60, size * per_fault)


def _plan(rig: Rig, dice: random.Random, **changes: float) -> Plan:
    return rig.plan(dice.randrange(2**32), **{"rate": RATE, **changes})
