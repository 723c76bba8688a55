"""Registries: which number a category has, the same here, in every checkpoint and in offline training (design §6).

Indices run from 1 in the order in which keys were first seen; 0 means unknown or empty. Known vocabularies are
numbered in advance. A full registry sends further keys to a stable hash (SHA-256, the same in every process), so
that a flood of new names neither grows a file nor moves an index. Nothing is written on the step path: whoever
owns the registries calls :meth:`Registries.flush` at a quiet moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

from schemas.enums import (
    BLENDING_METHODS,
    OPTIMIZER_FAMILIES,
    BlueprintTier,
    CompileStatus,
    GradientInstability,
    HandlingClass,
    HazardBand,
    ResourceProfile,
    SeedLifecycleStage,
)
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.runs.durable_file import FileNotSaved, replace_file

#: Leyline's numbered vocabularies: the wire number is the index.
ENUMS: dict[str, type[IntEnum]] = {
    "lifecycle_stage": SeedLifecycleStage,
    "hazard_class": HazardBand,
    "handling_class": HandlingClass,
    "blueprint_tier": BlueprintTier,
    "resource_profile": ResourceProfile,
    "compile_status": CompileStatus,
    "gradient_instability": GradientInstability,
}
_NAMED: dict[str, tuple[str, ...]] = {"optimizer_family": OPTIMIZER_FAMILIES, "schedule": BLENDING_METHODS}

#: Keys numbered in advance, by vocabulary.
PRESEEDS: dict[str, dict[str, int]] = {
    **{name: {member.name: member.value for member in kind if member.value} for name, kind in ENUMS.items()},
    **{name: {key: index for index, key in enumerate(keys, start=1)} for name, keys in _NAMED.items()},
}
#: Rows of each vocabulary's embedding tables, index 0 included; the smallest that any channel declares.
CAPACITIES: dict[str, int] = {}
for _channel in (channel for schema in NODES.values() for channel in schema.categories):
    CAPACITIES[_channel.vocabulary] = min(
        _channel.capacity, CAPACITIES.get(_channel.vocabulary, _channel.capacity)
    )


class RegistryCorrupt(ValueError):
    """A registry file is unreadable; taking it for empty would renumber every category."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"registry file {path} {reason}; restore it from a backup or a checkpoint's snapshot, "
            "or delete it to number its categories anew (checkpoints then no longer match)"
        )
        self.path = path


class RegistryWriteFailed(FileNotSaved):
    """A registry could not be saved. It goes on working in memory; a later flush tries again."""

    kind = "registry"


class RegistryRenumbered(ValueError):
    """A snapshot gives known keys other numbers than the live registry does."""

    def __init__(self, name: str, key: str, live: int, offered: int | None) -> None:
        super().__init__(
            f"registry {name!r}: {key!r} is {live} here but {offered} in the snapshot; "
            "take the snapshot from a worker or checkpoint of the same line"
        )


class Registry:
    """One vocabulary: key -> index.

    Args:
        name: the vocabulary, as ``layer_type``.
        capacity: rows of the embedding table; indices are 1 to ``capacity - 1``.
        entries: what is known already.
    """

    def __init__(self, name: str, capacity: int, entries: Mapping[str, int] | None = None) -> None:
        self.name = name
        self.capacity = capacity
        self._indices: dict[str, int] = dict(entries or {})
        self.changed = False

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def entries(self) -> dict[str, int]:
        """A copy of key -> index."""
        return dict(self._indices)

    def index(self, key: str) -> int:
        """Return the index of ``key``, numbering it when it is new: 0 for empty, else 1 to ``capacity - 1``."""
        if not key:
            return 0
        known = self._indices.get(key)
        if known is not None:
            return known
        following = max(self._indices.values(), default=0) + 1
        if following >= self.capacity:
            return _stable_hash(key, self.capacity)
        self._indices[key] = following
        self.changed = True
        return following

    def digest(self) -> str:
        """SHA-256 (hex) of the compact JSON of the sorted ``[[key, index], ...]`` list (``domain.md`` §8.1)."""
        return digest_of(self._indices)

    def is_prefix_of(self, other: Registry | Mapping[str, int]) -> bool:
        """Return whether every key here has the same index in ``other``: what was trained here stays true."""
        return is_prefix(self._indices, other.entries if isinstance(other, Registry) else other)

    def adopt(self, entries: Mapping[str, int]) -> None:
        """Take over a longer snapshot of the same vocabulary.

        Raises:
            RegistryRenumbered: a key known here is missing there or has another index, or two keys share an index
                or lie outside the capacity; nothing is changed.
        """
        for key, index in self._indices.items():
            if entries.get(key) != index:
                raise RegistryRenumbered(self.name, key, index, entries.get(key))
        owners: dict[int, str] = {}
        for key, index in entries.items():
            if index in owners or not 1 <= index < self.capacity:
                raise RegistryRenumbered(self.name, owners.get(index, key), index, index)
            owners[index] = key
        if len(entries) > len(self._indices):
            self._indices = dict(entries)
            self.changed = True


class Registries:
    """All vocabularies of the feature table, loaded from and saved to ``directory`` (None: memory only).

    Files are ``<vocabulary>_registry.json``: one JSON object {key: index}.

    Raises:
        RegistryCorrupt: a file exists but is no registry, or contradicts the numbers fixed in advance.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._registries = {name: self._load(name, capacity) for name, capacity in CAPACITIES.items()}

    def __getitem__(self, vocabulary: str) -> Registry:
        return self._registries[vocabulary]

    def __iter__(self) -> Iterator[Registry]:
        return iter(self._registries.values())

    def index(self, vocabulary: str, key: str) -> int:
        """Return the index of ``key``, numbering it when it is new; 0 for an empty key."""
        return self._registries[vocabulary].index(key)

    def digests(self) -> dict[str, str]:
        """SHA-256 by vocabulary."""
        return {registry.name: registry.digest() for registry in self}

    def snapshots(self) -> dict[str, dict[str, int]]:
        """Key -> index by vocabulary, for checkpoints."""
        return {registry.name: registry.entries for registry in self}

    def flush(self) -> int:
        """Save what changed, each file by write, fsync and rename; return the number of files written.

        May run in a thread of its own while the step path numbers new keys.

        Raises:
            RegistryWriteFailed: at least one file could not be saved (the first is named, the others were tried).
        """
        if self._directory is None:
            return 0
        failure: RegistryWriteFailed | None = None
        written = 0
        for registry in self:
            if not registry.changed:
                continue
            path = self._path(registry.name, self._directory)
            registry.changed = (
                False  # before the copy: a key numbered while the file is written is saved next time
            )
            try:
                replace_file(path, json.dumps(registry.entries, ensure_ascii=False, indent=1))
            except OSError as error:
                registry.changed = True
                failure = failure or RegistryWriteFailed(path, error)
            else:
                written += 1
        if failure is not None:
            raise failure
        return written

    def _load(self, name: str, capacity: int) -> Registry:
        preseed = PRESEEDS.get(name, {})
        if self._directory is None:
            return Registry(name, capacity, preseed)
        path = self._path(name, self._directory)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return Registry(name, capacity, preseed)
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryCorrupt(path, f"cannot be read ({error})") from error
        entries = _parse(path, text, capacity)
        # An older release knew fewer fixed categories: those that are new take their number, if it is free.
        complete = {**preseed, **entries}
        if not is_prefix(preseed, complete) or len(set(complete.values())) < len(complete):
            raise RegistryCorrupt(path, "renumbers categories whose numbers are fixed")
        registry = Registry(name, capacity, complete)
        registry.changed = len(complete) > len(entries)
        return registry

    @staticmethod
    def _path(name: str, directory: Path) -> Path:
        return directory / f"{name}_registry.json"


def digest_of(entries: Mapping[str, int]) -> str:
    """SHA-256 (hex) of the compact JSON of the sorted ``[[key, index], ...]`` list."""
    text = json.dumps(sorted([key, index] for key, index in entries.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_prefix(older: Mapping[str, int], newer: Mapping[str, int]) -> bool:
    """Return whether every key of ``older`` has the same index in ``newer``."""
    return all(newer.get(key) == index for key, index in older.items())


def _parse(path: Path, text: str, capacity: int) -> dict[str, int]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise RegistryCorrupt(path, f"is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise RegistryCorrupt(path, "holds no object of key and index")
    for key, index in entries.items():
        if not key or type(index) is not int or not 1 <= index < capacity:
            raise RegistryCorrupt(path, f"gives {key!r} the index {index!r}, not 1 to {capacity - 1}")
    if len(set(entries.values())) != len(entries):
        raise RegistryCorrupt(path, "gives one index to several keys")
    return entries


def _stable_hash(key: str, capacity: int) -> int:
    return 1 + int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % (capacity - 1)
