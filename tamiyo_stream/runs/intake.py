"""Taking messages into a run's state: order is checked first, then the state moves on (design §5).

A step decides at most once: what was seen before (by id), or is not newer than the last step, is refused and
counted.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from schemas.kasmina import SeedExport
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.runs.state import RunState, StepRecord

#: Newest event ids kept for duplicate detection; a redelivery or a publisher's retry lies a few entries back.
RECENT_IDS = 256
#: Newest steps kept; the rolling means of the context node read them.
HISTORY_STEPS = 64
#: 2000-01-01, Unix ns: a clock below it was never set.
EARLIEST_NS = 946_684_800 * 10**9
#: Seeds kept of one export; the design's limit is 100 per epoch (domain.md §2.16).
MAX_SEEDS = 1024


class Verdict(StrEnum):
    """What becomes of a state packet. The values are the reason codes on the bus."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"


def take_state(run: RunState, event_id: str, packet: SystemStatePacket) -> Verdict:
    """Move ``run`` on to ``packet``, unless it was seen before or is not newer than the last step.

    A jump over steps is accepted and counted under ``gap``.
    """
    if event_id in run.recent_ids:
        run.count(Verdict.DUPLICATE)
        return Verdict.DUPLICATE
    remember(run, event_id)
    if packet.global_step <= run.last_step:
        run.count(Verdict.STALE)
        return Verdict.STALE
    if run.last_step >= 0:
        run.count("gap", packet.global_step - run.last_step - 1)
    _move_on(run, packet)
    return Verdict.ACCEPTED


def take_seeds(run: RunState, event_id: str, export: SeedExport) -> Verdict:
    """Replace the run's seeds by ``export``, unless it was seen before or is older than the known one."""
    if event_id in run.recent_ids:
        run.count(Verdict.DUPLICATE)
        return Verdict.DUPLICATE
    remember(run, event_id)
    if export.timestamp_ns < run.seeds_timestamp_ns:
        run.count(Verdict.STALE)
        return Verdict.STALE
    run.seeds = {seed.seed_id: seed for seed in export.seeds[:MAX_SEEDS]}
    run.seeds_timestamp_ns = export.timestamp_ns
    return Verdict.ACCEPTED


def remember(run: RunState, event_id: str) -> None:
    """Add ``event_id`` to the recent ids; the oldest leaves beyond :data:`RECENT_IDS`."""
    run.recent_ids.append(event_id)
    del run.recent_ids[:-RECENT_IDS]


def loss_delta(run: RunState, packet: SystemStatePacket) -> float | None:
    """Return how much the training loss rose since the run's last step; None where either is not known."""
    loss = finite(packet.training_loss)
    return None if loss is None or run.last_loss is None else loss - run.last_loss


def state_age_ms(packet: SystemStatePacket, now_ns: int) -> float | None:
    """Return how old ``packet`` is, 0 where its clock is ahead; None where its time is no date of this century."""
    if packet.timestamp_ns < EARLIEST_NS:
        return None
    return max(0.0, (now_ns - packet.timestamp_ns) / 1e6)


def record_latency(run: RunState, latency_ms: float, deadline_ms: float) -> None:
    """Note in the newest step how long its decision took; count it under ``sla_breaches`` beyond the deadline."""
    run.history[-1] = msgspec.structs.replace(run.history[-1], decision_latency_ms=latency_ms)
    if latency_ms > deadline_ms:
        run.count("sla_breaches")


def finite(value: float | None) -> float | None:
    """Return ``value``, or None where it is absent or not finite."""
    return value if value is not None and math.isfinite(value) else None


def _move_on(run: RunState, packet: SystemStatePacket) -> None:
    loss = finite(packet.training_loss)
    metrics = packet.training_metrics
    run.last_step = packet.global_step
    run.last_packet_id = packet.packet_id
    run.last_epoch = packet.current_epoch if packet.current_epoch is not None else run.last_epoch
    run.last_loss = loss if loss is not None else run.last_loss
    validation_loss = finite(packet.validation_loss)
    run.last_validation_loss = validation_loss if validation_loss is not None else run.last_validation_loss
    run.blueprint_id = packet.blueprint_id or run.blueprint_id
    run.blueprint_version = packet.blueprint_version or run.blueprint_version
    run.history.append(
        StepRecord(
            step=packet.global_step,
            epoch=packet.current_epoch,
            loss=loss,
            gradient_norm=finite(metrics.get("gradient_norm")),
            samples_per_s=finite(metrics.get("samples_per_s")),
            hook_latency_ms=finite(metrics.get("hook_latency_ms")),
        )
    )
    del run.history[:-HISTORY_STEPS]
