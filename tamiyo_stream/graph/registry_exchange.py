"""Takes over the vocabularies that offline training publishes (requirements ``002`` §1, §8.1).

Live numbers never move. A snapshot that knows less than we do changes nothing; one that knows more is taken over
where its beginning is ours; one that numbers a known key otherwise is refused.
"""

from __future__ import annotations

from schemas.simic import RegistrySnapshot
from tamiyo_stream.graph.registries import Registries, RegistryRenumbered, digest_of, is_prefix


class SnapshotRefused(ValueError):
    """A snapshot cannot be taken over. ``reason`` is the code, the text names registry, value and fix."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def merge_snapshot(registries: Registries, snapshot: RegistrySnapshot) -> int:
    """Take over ``snapshot``; return the number of keys it added.

    Raises:
        SnapshotRefused: ``registry_unknown``, ``registry_digest_mismatch`` or ``registry_renumbered``; nothing is
            changed.
    """
    known = {registry.name: registry for registry in registries}
    registry = known.get(snapshot.registry)
    if registry is None:
        raise SnapshotRefused(
            "registry_unknown",
            f"no registry is named {snapshot.registry!r}; use one of {', '.join(sorted(known))}",
        )
    digest = digest_of(snapshot.entries)
    if digest != snapshot.digest:
        raise SnapshotRefused(
            "registry_digest_mismatch",
            f"registry {snapshot.registry!r} has the digest {digest}, its snapshot says {snapshot.digest}; "
            "publish it again",
        )
    if is_prefix(snapshot.entries, registry.entries):
        return 0
    before = len(registry)
    try:
        registry.adopt(snapshot.entries)
    except RegistryRenumbered as error:
        raise SnapshotRefused("registry_renumbered", str(error)) from None
    return len(registry) - before
