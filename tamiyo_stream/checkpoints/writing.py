"""Writes checkpoints: never one that :mod:`~tamiyo_stream.checkpoints.reading` would refuse, never half a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from schemas.signing import Keyring
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.compatibility import (
    check_finite,
    check_tensors,
    norms_of,
    registries_of,
)
from tamiyo_stream.checkpoints.contents import TensorSpec
from tamiyo_stream.checkpoints.document import document_of, policy_version_of
from tamiyo_stream.checkpoints.signature import sign_checkpoint, signature_path
from tamiyo_stream.checkpoints.tensor_file import write_tensor_file
from tamiyo_stream.checkpoints.torch_archive import write_archive
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.runs.durable_file import FileNotSaved, replace_file

#: Suffix of a file -> what writes its form.
WRITERS = {".pt": write_archive, ".safetensors": write_tensor_file}


class CheckpointNotSaved(FileNotSaved):
    """A checkpoint could not be written; what its path held before is intact."""

    kind = "checkpoint"


def encode_checkpoint(checkpoint: Checkpoint, suffix: str = ".pt") -> bytes:
    """Return the file of ``checkpoint`` in the form of ``suffix``. Equal content gives equal bytes.

    Raises:
        CheckpointRefused: a reader would refuse it: the state is not the config's, a weight is not finite, a
            registry renumbers fixed categories.
        ValueError: no such suffix, or content too long for its form.
    """
    write = WRITERS.get(suffix)
    if write is None:
        raise ValueError(f"checkpoints end in {' or '.join(WRITERS)}, not in {suffix!r}; rename the file")
    check_finite(checkpoint.state)
    document = document_of(checkpoint)
    specs = {
        name: TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in checkpoint.state.items()
    }
    check_tensors(document, specs, checkpoint.config)
    registries_of(document, Registries())
    norms_of(document)
    policy_version_of(document)
    return write(document, checkpoint.state)


def write_checkpoint(path: Path, checkpoint: Checkpoint, keyring: Keyring | None = None) -> str:
    """Write ``checkpoint`` to ``path`` (``.pt`` or ``.safetensors``) and return the file's SHA-256 (hex).

    With a ``keyring`` its signature is written beside it, as ``<file>.sig``; without one an old one is removed.

    Raises:
        CheckpointNotSaved: the path holds what it held before.
        CheckpointRefused, ValueError: as :func:`encode_checkpoint`.
    """
    data = encode_checkpoint(checkpoint, path.suffix)
    digest = hashlib.sha256(data).hexdigest()
    try:
        replace_file(path, data)
        if keyring is None:
            signature_path(path).unlink(missing_ok=True)
        else:
            replace_file(signature_path(path), sign_checkpoint(keyring, checkpoint.policy_version, digest))
    except OSError as error:
        raise CheckpointNotSaved(path, error) from error
    return digest
