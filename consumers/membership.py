"""Which workers are there, and how many partitions each may hold: the fair share (design §4 partitions).

Every worker announces itself in one sorted set, by the time at which the announcement expires; Redis's clock
counts, for all alike. The partitions are shared out by seniority: of P partitions over W workers each gets P // W,
the longest-serving ones one more where that does not come out even. So a worker that joins takes from those above
its share and from nobody else, and the shares of all always add up to P.

This decides who *should* hold a partition; who does hold it is the lease's to say (:mod:`consumers.lease`). A
wrong view here costs time, never a decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from consumers.lease import Fence, PartitionLease


def fair_share(member: str, members: Sequence[str], partitions: int) -> int:
    """Return how many of ``partitions`` ``member`` may hold; ``members`` in order of seniority.

    A member that is not listed holds nothing.
    """
    if member not in members:
        return 0
    share, rest = divmod(partitions, len(members))
    return share + (members.index(member) < rest)


class Membership:
    """Announces one worker and sees the others.

    Args:
        prefix: of the worker group's own keys. worker: unique name. ttl_ms: life of an announcement.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str,
        worker: str,
        ttl_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._key = f"{prefix}:workers"
        self._worker = worker
        self._ttl_ms = ttl_ms
        self._clock = clock
        self._seen: frozenset[str] = frozenset()
        self._trusted_until = 0.0
        self.member = ""

    async def announce(self) -> tuple[str, ...]:
        """Say that this worker is there for ``ttl_ms`` more; return all members, the longest-serving first.

        In a Redis that came back empty the others are not listed until they have announced themselves again. They
        count for ``ttl_ms`` more: the quickest must not take the partitions of those who remember their runs.

        Raises:
            redis.exceptions.RedisError: Redis is away; call again.
        """
        seconds, microseconds = await self._client.time()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        if not self.member:
            self.member = f"{now_ms:015d}:{self._worker}"  # sorts by the time of joining
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.zadd(self._key, {self.member: now_ms + self._ttl_ms})
            pipe.zremrangebyscore(self._key, "-inf", now_ms)
            pipe.pexpire(self._key, self._ttl_ms)
            pipe.zrange(self._key, 0, -1)
            replies: list[Any] = await pipe.execute()
        listed = frozenset(name.decode() for name in replies[-1])
        if replies[0] and self._seen:  # our own announcement was forgotten
            self._trusted_until = self._clock() + self._ttl_ms / 1000
        if self._clock() < self._trusted_until:
            listed |= self._seen
        self._seen = listed
        return tuple(sorted(listed))

    async def leave(self) -> None:
        """Say that this worker is gone, so that the others need not wait for its announcement to expire."""
        if self.member:
            await self._client.zrem(self._key, self.member)


class PartitionShare:
    """The partitions that one worker holds or is about to take, against how many it may hold.

    Until the first announcement it may hold none. No I/O: the worker's tasks share it.
    """

    def __init__(self) -> None:
        self._allowed = 0
        self._held: list[int] = []

    def allow(self, count: int) -> None:
        """Set how many partitions this worker may hold."""
        self._allowed = count

    def take(self, partition: int) -> bool:
        """Reserve ``partition`` before trying its lease; False where the share is used up."""
        if partition in self._held:
            return True
        if len(self._held) >= self._allowed:
            return False
        self._held.append(partition)
        return True

    def give_back(self, partition: int) -> None:
        """End the reservation of ``partition``: its lease was not to be had, was lost, or was given back."""
        if partition in self._held:
            self._held.remove(partition)

    def surplus(self, partition: int) -> bool:
        """Whether ``partition`` is to be given back: held beyond the share, and among the last taken."""
        return partition in self._held[self._allowed :]

    @property
    def held(self) -> tuple[int, ...]:
        """The partitions held or reserved, in the order in which they were taken."""
        return tuple(self._held)


class SharedLease:
    """The lease of one partition, wanted only while this worker's share allows it.

    Args:
        lease: of ``partition``. share: of this worker, one for all its partitions.
    """

    def __init__(self, lease: PartitionLease, share: PartitionShare, partition: int) -> None:
        self._lease = lease
        self._share = share
        self._partition = partition

    async def acquire(self) -> Fence | None:
        """Take the lease if the share has room and nobody else holds it; see :meth:`PartitionLease.acquire`."""
        if not self._share.take(self._partition):
            return None
        fence = await self._lease.acquire()
        if fence is None:
            self._share.give_back(self._partition)
        return fence

    async def renew(self) -> bool:
        """Prolong the lease; False where it was lost."""
        return await self._lease.renew()

    async def release(self) -> None:
        """Give the lease back if it is still ours, and its place in the share."""
        await self._lease.release()
        self._share.give_back(self._partition)

    @property
    def wanted(self) -> bool:
        """Whether the share still covers the partition; where not, drain and release it."""
        return not self._share.surplus(self._partition)

    @property
    def held(self) -> bool:
        """Whether this worker holds the lease, or is about to."""
        return self._partition in self._share.held
