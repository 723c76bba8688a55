"""Reads the checkpoint that a :class:`~schemas.simic.PolicyUpdate` announces.

The entry was verified when it arrived, so the SHA-256 in it vouches for the file: no sidecar is asked for.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.simic import PolicyUpdate
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.config import ARCHITECTURE_VERSION


def read_update(update: PolicyUpdate, registries: Registries) -> Checkpoint:
    """Return the checkpoint that ``update`` brings or points to, verified against what it announces.

    Blocks while it reads, verifies and allocates: a second for the network. ``registries`` are not changed.

    Raises:
        CheckpointRefused: the reason of ``policy_update_rejected``.
    """
    if update.tamiyo_policy_version != ARCHITECTURE_VERSION:
        raise CheckpointRefused(
            Reason.VERSION,
            f"tamiyo_policy_version is {update.tamiyo_policy_version[:80]!r}, here {ARCHITECTURE_VERSION!r}; "
            "publish a policy of this architecture",
        )
    source = update.payload if update.payload is not None else path_of(update.uri or "")
    return read_checkpoint(
        source, Trust(sha256=update.sha256, size_bytes=update.size_bytes), registries=registries
    )


def path_of(uri: str) -> Path:
    """Return the path that ``uri`` names: a ``file://`` URL or a plain path.

    Raises:
        CheckpointRefused: ``unreadable``: it lies on another host, or elsewhere than in a file.
    """
    parts = urlsplit(uri) if "://" in uri else None
    if parts is not None and (parts.scheme != "file" or parts.netloc not in {"", "localhost"}):
        raise _unreadable(uri)
    path = unquote(parts.path) if parts is not None else uri
    if not path or "\0" in path:
        raise _unreadable(uri)
    return Path(path)


def _unreadable(uri: str) -> CheckpointRefused:
    return CheckpointRefused(
        Reason.UNREADABLE,
        f"uri {uri[:200]!r} is no file of this host; put the checkpoint on storage that workers mount and publish "
        "its path or file:// URL",
    )
