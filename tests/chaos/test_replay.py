"""The replay window: what was taken once is refused for ever after, across restarts and beyond the recent ids."""

from __future__ import annotations

import random

from schemas.kasmina import SeedExport, SeedState
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.runs.intake import RECENT_IDS, Verdict, take_seeds, take_state
from tamiyo_stream.runs.snapshot import decode_snapshot, encode_snapshot
from tamiyo_stream.runs.state import RunState

STEPS = 4 * RECENT_IDS
REPLAYS = 20_000
SEED = 5


def packet(step: int) -> SystemStatePacket:
    return SystemStatePacket(run_id="run", packet_id=f"p{step}", global_step=step, timestamp_ns=step)


def export(number: int) -> SeedExport:
    seed = SeedState(seed_id="s", alpha=number / STEPS)
    return SeedExport(run_id="run", timestamp_ns=number, seeds=[seed])


def taken() -> RunState:
    """A run that took every step and export once, in between moved from worker to worker by its saved state."""
    run = RunState(run_id="run")
    for step in range(STEPS):
        assert take_state(run, f"state-{step}", packet(step)) is Verdict.ACCEPTED
        assert take_seeds(run, f"seeds-{step}", export(step)) is Verdict.ACCEPTED
        if step % 100 == 0:
            run = decode_snapshot(encode_snapshot(run))
    return decode_snapshot(encode_snapshot(run))


def test_no_replayed_state_is_accepted_after_a_restart() -> None:
    run, dice = taken(), random.Random(SEED)
    for _ in range(REPLAYS):
        step = dice.randrange(STEPS)
        event_id = dice.choice([f"state-{step}", f"forged-id-{dice.random()}"])  # by its own id or another
        assert take_state(run, event_id, packet(step)) is not Verdict.ACCEPTED
    assert run.last_step == STEPS - 1


def test_no_replayed_export_sets_the_seeds_back() -> None:
    run, dice = taken(), random.Random(SEED)
    newest = run.seeds["s"].alpha
    for _ in range(REPLAYS):
        take_seeds(run, f"seeds-{dice.randrange(STEPS)}", export(dice.randrange(STEPS)))
        assert run.seeds["s"].alpha == newest
