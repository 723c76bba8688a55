"""Partitions of the ordered inputs: a run's messages always travel through one of them (design §4)."""

from __future__ import annotations

import zlib

from schemas.catalogue import Stream

#: Inputs whose order per run matters; the other streams are not partitioned.
ORDERED: frozenset[Stream] = frozenset({Stream.STATE, Stream.SEEDS})


def partition_of(run_id: str, partitions: int) -> int:
    """Return the partition of ``run_id``: ``crc32(run_id) % partitions``, over its UTF-8 bytes.

    Raises:
        ValueError: fewer than one partition.
    """
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}; configure 1 or more")
    return zlib.crc32(run_id.encode()) % partitions


def stream_key(stream: Stream, *, name: str | None = None, partition: int = 0, partitions: int = 1) -> str:
    """Return the Redis key of ``stream``: its name, with ``.{p}`` (a hash tag) where it is partitioned.

    Raises:
        ValueError: ``partition`` is not below ``partitions``.
    """
    if not 0 <= partition < partitions:
        raise ValueError(f"partition {partition} does not exist; there are {partitions}, numbered from 0")
    base = name or stream.value
    if partitions == 1 or stream not in ORDERED:
        return base
    return f"{base}.{{{partition}}}"
