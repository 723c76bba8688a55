"""Keeps a partition's inputs in order, from time to time: trims them, removes consumers that are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from consumers.group import ConsumerGroup
from consumers.trimming import StreamTrimmer

INTERVAL_S = 5.0

log = structlog.get_logger("tamiyo.partition")


async def keep_house(
    partition: int, group: ConsumerGroup, trimmers: Sequence[StreamTrimmer], owned: Callable[[], bool]
) -> None:
    """Keep the streams of ``partition`` in order while this worker owns it; what fails waits for its next turn."""
    while True:
        await anyio.sleep(INTERVAL_S)
        if not owned():
            continue
        try:
            trimmed = sum([await trimmer.trim() for trimmer in trimmers])
            reaped = await group.reap()
        except (RedisError, OSError) as error:
            log.debug("housekeeping_failed", partition=partition, error=str(error))
            continue
        if trimmed or reaped:
            log.info("input_kept_in_order", partition=partition, trimmed=trimmed, consumers_reaped=reaped)
