"""Partitions of the ordered inputs: a run's messages always travel through one of them (design §4)."""

from __future__ import annotations

import zlib

from schemas.catalogue import Stream

#: Inputs whose order per run matters; the other streams are not partitioned.
ORDERED: frozenset[Stream] = frozenset({Stream.STATE, Stream.SEEDS})


def partition_of(run_id: str, partitions: int) -> int:
    """Return the partition of ``run_id``: ``crc32(run_id) % partitions``."""
    return zlib.crc32(run_id.encode()) % partitions


def stream_key(stream: Stream, *, name: str | None = None, partition: int = 0, partitions: int = 1) -> str:
    """Return the Redis key of ``stream``: its name, with ``.{p}`` (a hash tag) where it is partitioned."""
    base = name or stream.value
    if partitions == 1 or stream not in ORDERED:
        return base
    return f"{base}.{{{partition}}}"
