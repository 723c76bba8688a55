"""Why a checkpoint is refused: one exception, one code per reason (``policy_update_rejected{reason}``)."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """What was wrong, in the order in which it is looked for."""

    UNREADABLE = "unreadable"
    SIZE = "size"
    DIGEST_MISMATCH = "digest_mismatch"
    MISSING_SIGNATURE = "missing_signature"
    INVALID_SIGNATURE = "invalid_signature"
    NOT_A_CHECKPOINT = "not_a_checkpoint"
    UNSAFE_PICKLE = "unsafe_pickle"
    LEGACY_FFN = "legacy_ffn"
    VERSION = "version"
    CONFIG = "config"
    MANIFEST = "manifest"
    ACTION_TABLE = "action_table"
    REGISTRY_DIGEST_MISMATCH = "registry_digest_mismatch"
    REGISTRY_RENUMBERED = "registry_renumbered"
    NORMS = "norms"
    NAMES = "names"
    SHAPES = "shapes"
    DTYPES = "dtypes"
    NOT_FINITE = "not_finite"


class CheckpointRefused(ValueError):
    """A checkpoint must not be used. ``reason`` is the code; the text names what differs and the fix."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
