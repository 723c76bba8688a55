"""What differs between two checkpoints: fields of their documents, vocabularies, and how far the weights moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tamiyo_stream.checkpoints.contents import Contents
from tamiyo_stream.graph.registries import is_prefix

#: Document fields that are compared as they are. The rest is derived from the weights or compared in its own way.
_FIELDS = (
    "architecture_version",
    "policy_version",
    "config",
    "manifest_digest",
    "actions",
    "policy_params",
    "blending_methods",
    "norms",
    "provenance",
    "state_digest",
)


@dataclass(frozen=True, slots=True)
class Change:
    """A field that differs: its value in the first and in the second checkpoint, as text."""

    where: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the weights of a part of the network are apart.

    ``relative`` is ‖a - b‖ / ‖a‖, infinite where a is zero and b is not. ``changed`` and ``total`` count tensors.
    """

    module: str
    relative: float
    changed: int
    total: int


def document_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    """Return the fields that differ, down to the entry."""
    fields = [change for name in _FIELDS for change in _changes(first.get(name), second.get(name), name)]
    registries = [side.get("registries") for side in (first, second)]
    older, newer = (side if isinstance(side, dict) else {} for side in registries)
    return fields + registry_changes(older, newer)


def registry_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    """Return the vocabularies that differ, with how the second relates to the first."""
    changes = []
    for name in sorted(first.keys() | second.keys()):
        older, newer = (_entries(side, name) for side in (first, second))
        if older == newer:
            continue
        if is_prefix(older, newer):
            relation = "continues it"
        elif is_prefix(newer, older):
            relation = "is a beginning of it"
        else:
            relation = "numbers it otherwise"
        changes.append(Change(f"registries.{name}", f"{len(older)} keys", f"{len(newer)} keys, {relation}"))
    return changes


def weight_distances(first: Contents, second: Contents) -> list[Distance]:
    """Return the distance of every part of the network (an encoder, a stage, a head), in order of name.

    Tensors that only one of them has, or in another shape, are left out.

    Raises:
        CheckpointRefused: the weights of one cannot be read.
    """
    ours, theirs = first.load(), second.load()
    modules: dict[str, list[str]] = {}
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape == theirs[name].shape:
            modules.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [_distance(module, names, ours, theirs) for module, names in modules.items()]


def _entries(registries: Mapping[str, Any], name: str) -> dict[str, int]:
    snapshot = registries.get(name)
    entries = snapshot.get("entries") if isinstance(snapshot, dict) else None
    return entries if isinstance(entries, dict) else {}


def _distance(
    module: str, names: list[str], first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Distance:
    apart = sum(float(torch.sum((first[name].double() - second[name].double()) ** 2)) for name in names)
    size = sum(float(torch.sum(first[name].double() ** 2)) for name in names)
    relative = (apart / size) ** 0.5 if size else float("inf") if apart else 0.0
    changed = sum(not torch.equal(first[name], second[name]) for name in names)
    return Distance(module, relative, changed, len(names))


def _changes(first: Any, second: Any, where: str) -> list[Change]:
    if first == second:
        return []
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(first.keys() | second.keys())
        return [change for key in keys for change in _changes(first.get(key), second.get(key), f"{where}.{key}")]
    return [Change(where, _text(first), _text(second))]


def _text(value: Any) -> str:
    text = "absent" if value is None else str(value) or "empty"
    return text if len(text) <= 80 else text[:77] + "..."
