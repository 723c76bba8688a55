"""The pause quota: how many seeds of a run may be paused per epoch (domain.md §5.6)."""

from __future__ import annotations

from tamiyo_stream.runs.state import PauseQuota


def in_epoch(quota: PauseQuota, epoch: int) -> PauseQuota:
    """Return the quota as it stands in ``epoch``: a new epoch starts at zero."""
    return quota if quota.epoch == epoch else PauseQuota(epoch=epoch)


def is_spent(quota: PauseQuota, epoch: int, limit: int) -> bool:
    """Return whether no further targeted pause is allowed in ``epoch``."""
    return in_epoch(quota, epoch).used >= limit


def spend(quota: PauseQuota, epoch: int) -> PauseQuota:
    """Return the quota after one more targeted pause in ``epoch``."""
    current = in_epoch(quota, epoch)
    return PauseQuota(epoch=epoch, used=current.used + 1)
