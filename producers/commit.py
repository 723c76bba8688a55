"""The atomic commit: publish, save the run's state, acknowledge the source entries. All or nothing (design §10).

One transaction: WATCH the partition's fence, then MULTI: XADD outputs, HSET run state, XACK, EXEC. A worker that
lost its lease cannot commit. No scripting, so the worker's Redis user needs no EVAL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import WatchError

from schemas.entry import EntryFields

#: Fields of a run's state hash.
STATE_FIELD = b"state"
COMMIT_FIELD = b"commit"


class FenceLost(RuntimeError):
    """Another worker owns the partition: nothing was written and nothing may be retried."""


@dataclass(frozen=True, slots=True)
class Output:
    """One entry to publish. The stream is trimmed to about ``maxlen`` entries."""

    key: str
    fields: EntryFields = field(repr=False)
    maxlen: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Source entries that the commit settles."""

    key: str
    group: str
    entry_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedState:
    """A run's state to save under ``key`` with a life of ``ttl_s`` seconds."""

    key: str
    payload: bytes = field(repr=False)
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything one decision or refusal changes in Redis.

    ``commit_id`` is unique: a retry after a lost reply recognises by it that the transaction had already happened.
    ``once_key`` makes a commit without state idempotent: it is written with it, and a second one does nothing.
    """

    commit_id: str
    outputs: Sequence[Output] = ()
    state: SavedState | None = None
    acknowledgements: Sequence[Acknowledgement] = ()
    fence_key: str = ""
    fence_token: str = ""
    once_key: str = ""
    once_ttl_s: int = 86_400


class Committer:
    """Carries out commits on one connection pool."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def commit(self, commit: Commit) -> bool:
        """Carry out ``commit``; return False where it (or its ``once_key``) had been carried out before.

        Raises:
            FenceLost: the partition has another owner.
            redis.exceptions.RedisError: the outcome is unknown; call again with the same commit.
        """
        while True:
            try:
                return await self._attempt(commit)
            except WatchError:
                continue  # a watched key changed between the check and EXEC: look again

    async def load_state(self, key: str) -> bytes | None:
        """Return the state saved under ``key``, or None."""
        return cast("bytes | None", await cast("Any", self._client.hget(key, cast("Any", STATE_FIELD))))

    async def _attempt(self, commit: Commit) -> bool:
        async with self._client.pipeline(transaction=True) as pipe:
            if await self._happened(pipe, commit):
                return False
            pipe.multi()  # type: ignore[no-untyped-call]
            _queue(pipe, commit)
            await pipe.execute()
            return True

    async def _happened(self, pipe: Any, commit: Commit) -> bool:
        watched = [key for key in (commit.fence_key, commit.once_key) if key]
        if watched:
            await pipe.watch(*watched)
        if commit.fence_key and await pipe.get(commit.fence_key) != commit.fence_token.encode():
            raise FenceLost(f"{commit.fence_key} is no longer {commit.fence_token}; another worker took over")
        if commit.once_key and await pipe.exists(commit.once_key):
            return True
        if commit.state is None:
            return False
        stored = await (pipe if watched else self._client).hget(commit.state.key, COMMIT_FIELD)
        return bool(stored == commit.commit_id.encode())


def _queue(pipe: Any, commit: Commit) -> None:
    for output in commit.outputs:
        pipe.xadd(output.key, cast("Mapping[Any, Any]", output.fields), maxlen=output.maxlen, approximate=True)
    if commit.state is not None:
        pipe.hset(
            commit.state.key,
            mapping={STATE_FIELD: commit.state.payload, COMMIT_FIELD: commit.commit_id.encode()},
        )
        pipe.expire(commit.state.key, commit.state.ttl_s)
    if commit.once_key:
        pipe.set(commit.once_key, commit.commit_id, ex=commit.once_ttl_s)
    for acknowledgement in commit.acknowledgements:
        pipe.xack(acknowledgement.key, acknowledgement.group, *acknowledgement.entry_ids)
