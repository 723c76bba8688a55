"""Reads checkpoints as if an attacker had written them (design §10, §12; ``performance.md`` §6).

Cheapest and most telling first: size, digest and signature before anything is opened; the structure of the file
before torch sees it; what the document says before a tensor is read; the weights last.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.signing import Keyring
from tamiyo_stream.checkpoints import compatibility, tensor_file, torch_archive
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.contents import Contents, not_a_checkpoint
from tamiyo_stream.checkpoints.document import check_seal, field_of, policy_version_of, provenance_of
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.checkpoints.signature import (
    MAX_SIGNATURE_BYTES,
    check_signature,
    check_signed_version,
    signature_path,
)
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.config import TamiyoGNNConfig

#: Six times the network's size.
MAX_BYTES = 256 * 1024 * 1024
#: First bytes of pickles in the protocols from 2 on, and of common ones in older protocols.
_PICKLE_STARTS = (b"\x80", b"c", b"(", b"]", b"}")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a file must prove before it is opened; None asks for nothing.

    ``sha256`` (hex) and ``size_bytes`` as announced; ``keyring`` asks for a signature, the sidecar's for a path,
    else ``signature``.
    """

    sha256: str | None = None
    size_bytes: int | None = None
    keyring: Keyring | None = None
    signature: bytes | None = field(default=None, repr=False)


def read_checkpoint(
    source: Path | bytes,
    trust: Trust | None = None,
    *,
    registries: Registries | None = None,
    config: TamiyoGNNConfig | None = None,
) -> Checkpoint:
    """Return the checkpoint at ``source``, verified.

    Args:
        source: a file, or its bytes.
        trust: what it must prove first.
        registries: the live ones; None checks against the categories that are numbered in advance. They are not
            changed: see :func:`~tamiyo_stream.checkpoints.compatibility.registries_to_adopt`.
        config: the network's dimensions here; None = the standard ones.

    Raises:
        CheckpointRefused: with one of the reasons in :class:`~tamiyo_stream.checkpoints.refusal.Reason`; nothing
            of the file was executed.
    """
    trust = trust or Trust()
    data, signature = _source(source, trust)
    signed_version = _check_trust(data, trust, signature)
    contents = open_contents(data)
    document = contents.document
    compatibility.check_version(document)
    check_seal(document)
    found = compatibility.config_of(document, config or TamiyoGNNConfig())
    compatibility.check_manifest(document)
    compatibility.check_actions(document)
    snapshots = compatibility.registries_of(document, registries or Registries())
    norms = compatibility.norms_of(document)
    version, provenance = policy_version_of(document), provenance_of(document)
    if signed_version is not None:
        check_signed_version(signed_version, version)
    compatibility.check_tensors(document, contents.tensors, found)
    state = contents.load()
    compatibility.check_finite(state)
    checkpoint = Checkpoint(found, state, version, provenance, snapshots, norms)
    _check_state_digest(checkpoint, document)
    return checkpoint


def open_contents(data: bytes) -> Contents:
    """Return what a checkpoint file holds, whether or not it fits this worker.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``, ``unsafe_pickle``, ``legacy_ffn`` or ``shapes``.
    """
    if data.startswith(torch_archive.MAGIC):
        return torch_archive.open_archive(data)
    if tensor_file.looks_like_tensor_file(data):
        return tensor_file.open_tensor_file(data)
    if data.startswith(_PICKLE_STARTS):
        raise CheckpointRefused(
            Reason.UNSAFE_PICKLE,
            "the file is a bare pickle, which could execute anything when opened; it was not. Write checkpoints "
            "with tamiyo_stream.checkpoints.writing",
        )
    raise not_a_checkpoint("it begins neither as a .pt nor as a .safetensors file")


def read_file(path: Path) -> bytes:
    """Return the bytes of the checkpoint file ``path``.

    Raises:
        CheckpointRefused: ``unreadable``, or ``size`` above 256 MiB: then it is not read.
    """
    try:
        with path.open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, None)
            data = file.read(MAX_BYTES + 1)  # what is no plain file has no size to be asked for
    except OSError as error:
        raise CheckpointRefused(
            Reason.UNREADABLE, f"cannot read checkpoint {path} ({error.strerror}); correct the path or its rights"
        ) from None
    _check_size(len(data), None)
    return data


def read_signature(path: Path) -> bytes | None:
    """Return what lies beside the checkpoint ``path`` as its signature; None where nothing does."""
    try:
        with signature_path(path).open("rb") as file:
            return file.read(MAX_SIGNATURE_BYTES)
    except OSError:
        return None


def _source(source: Path | bytes, trust: Trust) -> tuple[bytes, bytes | None]:
    if isinstance(source, bytes):
        return source, trust.signature
    return read_file(source), trust.signature or (read_signature(source) if trust.keyring else None)


def _check_trust(data: bytes, trust: Trust, signature: bytes | None) -> str | None:
    """Return the policy version that the signature vouches for, None where none is asked for."""
    _check_size(len(data), trust.size_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if trust.sha256 is not None and not hmac.compare_digest(trust.sha256.lower().encode(), digest.encode()):
        raise CheckpointRefused(
            Reason.DIGEST_MISMATCH,
            f"SHA-256 of the checkpoint is {digest}, announced was {trust.sha256[:64]!r}; it was altered or "
            "replaced on the way: publish it again",
        )
    return None if trust.keyring is None else check_signature(trust.keyring, signature, digest)


def _check_size(size: int, announced: int | None) -> None:
    if size > MAX_BYTES:
        raise CheckpointRefused(
            Reason.SIZE, f"the checkpoint is larger than {MAX_BYTES} bytes; send the network's own weights alone"
        )
    if announced is not None and size != announced:
        raise CheckpointRefused(
            Reason.SIZE, f"the checkpoint has {size} bytes, {announced} were announced; publish it again"
        )


def _check_state_digest(checkpoint: Checkpoint, document: Mapping[str, Any]) -> None:
    digest = checkpoint.digest
    if field_of(document, "state_digest", str) != digest:
        raise CheckpointRefused(
            Reason.DIGEST_MISMATCH,
            f"the weights have the digest {digest}, the document says {document['state_digest'][:64]!r}; "
            "a weight was altered: publish the checkpoint again",
        )
