"""``tamiyo-stream checkpoint publish``: announces a policy and its vocabularies on the policy stream."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import redis
from rich.console import Console

from schemas.entry import encode_entry
from schemas.errors import EntryError
from schemas.record import Message
from schemas.signing import Keyring
from schemas.simic import PolicyUpdate, RegistrySnapshot
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint, read_file, read_signature
from tamiyo_stream.checkpoints.refusal import CheckpointRefused
from tamiyo_stream.graph.registries import PRESEEDS, digest_of

#: Largest checkpoint that travels in the entry itself. The network's own, 42 MB, is read from where it lies: Redis
#: would hold every version in memory.
INLINE_BYTES = 4 * 1024 * 1024


class PolicyStream(Protocol):
    """What is needed of a Redis client."""

    def xadd(self, name: str, fields: Any) -> Any:
        """Append an entry."""
        ...


def policy_messages(
    data: bytes, checkpoint: Checkpoint, *, uri: str, issued_at_ns: int, policy_id: str
) -> Iterator[Message]:
    """Yield what announces a checkpoint: its longer vocabularies first, then the update itself.

    ``uri`` is where workers read the file; a small one is sent along instead.
    """
    for name, entries in checkpoint.registries.items():
        if len(entries) > len(PRESEEDS.get(name, {})):
            yield RegistrySnapshot(
                registry=name, entries=dict(entries), digest=digest_of(entries), issued_at=issued_at_ns
            )
    inline = len(data) <= INLINE_BYTES
    runs = checkpoint.provenance.training_runs
    yield PolicyUpdate(
        policy_id=policy_id,
        issued_at=issued_at_ns,
        tamiyo_policy_version=checkpoint.config.architecture_version,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        uri=None if inline else uri,
        payload=data if inline else None,
        training_run_id=runs[-1] if runs else None,
    )


def publish(
    path: Path,
    client: PolicyStream,
    *,
    stream: str,
    keyring: Keyring | None = None,
    uri: str | None = None,
    console: Console | None = None,
) -> int:
    """Verify the checkpoint at ``path`` and append it to ``stream``; return 0, or 1 with the reason printed.

    Args:
        path: the file; it must stay where it is until every worker has read it.
        client: a Redis client.
        stream: key of the policy stream, ``settings.key(Stream.POLICY)``.
        keyring: signs the entries, and asks for the file's own signature.
        uri: where workers find the file, when that is not ``path``.
        console: where to print.
    """
    console = console or Console()
    try:
        data, signature = read_file(path), read_signature(path)
        checkpoint = read_checkpoint(data, Trust(keyring=keyring, signature=signature))
        messages = policy_messages(
            data,
            checkpoint,
            uri=uri or path.resolve().as_uri(),
            issued_at_ns=time.time_ns(),
            policy_id=str(uuid.uuid4()),
        )
        for message in messages:
            entry = client.xadd(stream, encode_entry(message, keyring))
            console.print(f"{stream} {_text(entry)}: {_summary(message)}", highlight=False, soft_wrap=True)
    except CheckpointRefused as refused:
        return _fail(console, f"{path}: refused ({refused.reason}): {refused}")
    except EntryError as error:
        return _fail(console, f"{path}: a worker would refuse the entry: {error}")
    except redis.RedisError as error:
        return _fail(console, f"cannot write to {stream}: {error}; see `tamiyo-stream check`")
    if keyring is None:
        console.print("unsigned: no signing key is configured; workers with a key refuse it", soft_wrap=True)
    return 0


def _summary(message: Message) -> str:
    if isinstance(message, RegistrySnapshot):
        return f"registry {message.registry}, {len(message.entries)} keys"
    if isinstance(message, PolicyUpdate):
        place = f"at {message.uri}" if message.uri else "inline"
        return f"policy {message.policy_id}, {message.size_bytes} bytes {place}, sha256 {message.sha256}"
    return type(message).__name__


def _text(entry: Any) -> str:
    return entry.decode() if isinstance(entry, bytes) else str(entry)


def _fail(console: Console, text: str) -> int:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 1
