"""Simic, the offline trainer: new policies and registry snapshots (``domain.md`` §2.8, §8)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.record import Count, Identifier, Message, TimestampNs, doc

#: Index of a registry entry; embedding tables are addressed with it.
RegistryIndex = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class PolicyUpdate(Message, frozen=True, kw_only=True):
    """A new policy: by reference (``uri`` + ``sha256`` + ``size_bytes``) or inline (``payload`` + ``sha256``).

    Raises:
        ValueError: neither or both of ``uri`` and ``payload``.
    """

    policy_id: Annotated[Identifier, doc("Unique per update")]
    issued_at: TimestampNs
    tamiyo_policy_version: Annotated[str, doc("Architecture version, as tamiyo_gnn_v1")]
    sha256: Annotated[str, doc("SHA-256 of the checkpoint's bytes, hex")]
    size_bytes: Annotated[Count, doc("Size of the checkpoint", "By")]
    uri: Annotated[str | None, doc("Where the worker reads the checkpoint: a file path or file:// URL")] = None
    payload: Annotated[bytes | None, doc("The checkpoint itself, where it is small enough")] = None
    training_run_id: Annotated[str | None, doc("Run that the policy was trained on")] = None

    def __post_init__(self) -> None:
        if (self.uri is None) == (self.payload is None):
            given = "neither" if self.uri is None else "both"
            raise ValueError(f"{given} of `uri` and `payload` given; send exactly one of them")


class RegistrySnapshot(Message, frozen=True, kw_only=True):
    """A categorical vocabulary as offline training knows it: ``entries`` maps key -> index from 1."""

    registry: Annotated[Identifier, doc("layer_type, activation_type, optimizer_family, …")]
    entries: Annotated[dict[str, RegistryIndex], doc("Key -> index; 0 is kept for unknown")]
    digest: Annotated[str, doc("SHA-256 of the compact JSON of the sorted [key, index] list, hex")]
    issued_at: TimestampNs
