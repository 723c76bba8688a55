"""The document of a checkpoint: everything but the weights, as plain JSON data (fields in docs/simic.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from tamiyo_stream.checkpoints.checkpoint import (
    ACTIONS,
    BLENDING,
    DTYPE,
    POLICY_PARAMS,
    Checkpoint,
    Provenance,
)
from tamiyo_stream.checkpoints.contents import not_a_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.graph.manifest import feature_manifest, manifest_digest
from tamiyo_stream.graph.registries import digest_of
from tamiyo_stream.runs.norms import export_norms

FORMAT = "tamiyo_checkpoint"
FORMAT_VERSION = 1
#: Field that holds the digest of all others.
SEAL = "document_digest"
MAX_VERSION_CHARACTERS = 200

T = TypeVar("T")


def document_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the document of ``checkpoint``, with this worker's manifest and action table, sealed."""
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture_version": checkpoint.config.architecture_version,
        "policy_version": checkpoint.policy_version,
        "config": checkpoint.config.to_dict(),
        "manifest": feature_manifest(),
        "manifest_digest": manifest_digest(),
        "tensors": {
            name: {"dtype": DTYPE, "shape": list(value.shape)} for name, value in sorted(checkpoint.state.items())
        },
        "actions": list(ACTIONS),
        "policy_params": [dict(entry) for entry in POLICY_PARAMS],
        "blending_methods": list(BLENDING),
        "registries": {
            name: {"entries": dict(entries), "digest": digest_of(entries)}
            for name, entries in sorted(checkpoint.registries.items())
        },
        "norms": export_norms(checkpoint.norms),
        "provenance": asdict(checkpoint.provenance) | {"training_runs": list(checkpoint.provenance.training_runs)},
        "state_digest": checkpoint.digest,
    }
    return document | {SEAL: seal_of(document)}


def seal_of(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the compact JSON of all other fields, keys sorted.

    It covers the state digest, so equal seals are equal checkpoints, whatever the form of the file.
    """
    others = {name: value for name, value in document.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_seal(document: Mapping[str, Any]) -> None:
    """Refuse a document that was altered (``digest_mismatch``): the files' own checksums do not cover all."""
    seal = seal_of(document)
    if document.get(SEAL) != seal:
        raise CheckpointRefused(
            Reason.DIGEST_MISMATCH,
            f"the document has the digest {seal}, it says {str(document.get(SEAL))[:64]!r}; it was altered: "
            "write the checkpoint with tamiyo_stream.checkpoints.writing",
        )


def field_of(document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return the field ``name``.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``, it is missing or no ``kind``.
    """
    value = document.get(name)
    if type(value) is not kind:
        raise not_a_checkpoint(f"its document has {type(value).__name__} in {name!r}, not {kind.__name__}")
    return value


def policy_version_of(document: Mapping[str, Any]) -> str:
    """Return the policy version: 1 to 200 characters.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``.
    """
    version = field_of(document, "policy_version", str)
    if not 1 <= len(version) <= MAX_VERSION_CHARACTERS:
        raise not_a_checkpoint(f"policy_version has {len(version)} characters, not 1 to {MAX_VERSION_CHARACTERS}")
    return version


def provenance_of(document: Mapping[str, Any]) -> Provenance:
    """Return where the weights come from.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``.
    """
    found = field_of(document, "provenance", dict)
    runs = field_of(found, "training_runs", list)
    created = found.get("created_at_ns")
    if not all(type(run) is str for run in runs) or (created is not None and type(created) is not int):
        raise not_a_checkpoint("its provenance names a run that is no text, or a time that is no whole number")
    return Provenance(
        created_by=field_of(found, "created_by", str),
        training_runs=tuple(runs),
        parent_digest=field_of(found, "parent_digest", str),
        note=field_of(found, "note", str),
        created_at_ns=created,
    )
