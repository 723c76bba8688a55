"""The lease of a partition: at any time one worker decides for its runs (design §10).

Two keys: the *lease* holds the owner's name and expires unless renewed; the *fence* holds the token of the
newest owner and never expires. A commit checks the fence inside its transaction, so a worker that lost its lease
without noticing cannot publish. The fence changes only when the owner changes, therefore renewing never disturbs a
commit. Tokens are random: after a Redis that came back empty, a counter would hand out old ones again.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import WatchError


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of ownership: ``key`` held ``token`` when the lease was taken.

    ``previous`` is the token before it: who reads there the token it held last knows that nobody owned the
    partition meanwhile. Empty where there was none: the first owner ever, or Redis came back empty.
    """

    key: str
    token: str
    previous: str = ""


class PartitionLease:
    """The lease of one partition for one worker.

    Args:
        prefix: of the worker group's own keys. owner: unique name of this worker. ttl_ms: life without renewal.
    """

    def __init__(self, client: Redis, *, prefix: str, partition: int, owner: str, ttl_ms: int) -> None:
        self._client = client
        self._lease_key = lease_key(prefix, partition)
        self._fence_key = f"{prefix}:fence:{{{partition}}}"
        self._owner = owner.encode()
        self._ttl_ms = ttl_ms

    async def acquire(self) -> Fence | None:
        """Take the lease if it is free (or ours) and return its fence; None while another worker holds it.

        The state of the partition's runs must be read after this returns: the fence keeps the previous owner from
        changing it any more.
        """
        taken = await self._client.set(self._lease_key, self._owner, nx=True, px=self._ttl_ms)
        if not taken and await self._client.get(self._lease_key) != self._owner:
            return None
        token = uuid.uuid4().hex
        previous = cast("bytes | None", await self._client.set(self._fence_key, token, get=True))
        return Fence(self._fence_key, token, (previous or b"").decode())

    async def renew(self) -> bool:
        """Prolong the lease; False where it was lost."""
        return await self._if_ours(prolong=True)

    async def release(self) -> None:
        """Give the lease back if it is still ours, so that another worker need not wait for it to expire."""
        await self._if_ours(prolong=False)

    async def _if_ours(self, *, prolong: bool) -> bool:
        async with self._client.pipeline(transaction=True) as pipe:
            try:
                await pipe.watch(self._lease_key)
                if cast("bytes | None", await pipe.get(self._lease_key)) != self._owner:
                    return False
                pipe.multi()  # type: ignore[no-untyped-call]
                if prolong:
                    pipe.pexpire(self._lease_key, self._ttl_ms)
                else:
                    pipe.delete(self._lease_key)
                await pipe.execute()
            except WatchError:
                return False
            return True


def lease_key(prefix: str, partition: int) -> str:
    """Return the key that exists while some worker serves ``partition``."""
    return f"{prefix}:lease:{{{partition}}}"
