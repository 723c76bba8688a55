"""Whether a checkpoint fits this worker: everything that gives its numbers a meaning must be what we have.

All of it is checked on the document and the list of tensors; the weights themselves are not read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from tamiyo_stream.checkpoints.checkpoint import ACTIONS, BLENDING, DTYPE, POLICY_PARAMS, expected_shapes
from tamiyo_stream.checkpoints.contents import TensorSpec
from tamiyo_stream.checkpoints.document import FORMAT, FORMAT_VERSION, field_of
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.graph.manifest import digest_of_manifest, feature_manifest, manifest_digest
from tamiyo_stream.graph.registries import (
    CAPACITIES,
    Registries,
    Registry,
    RegistryRenumbered,
    digest_of,
    is_prefix,
)
from tamiyo_stream.model.config import ARCHITECTURE_VERSION, TamiyoGNNConfig
from tamiyo_stream.runs.norms import NormsCorrupt, restore_norms
from tamiyo_stream.runs.state import EwmaNorm

#: Fields of the config that act in training alone, so that a trainer may choose them.
_TRAINING_ONLY = frozenset({"dropout", "attention_dropout", "head_dropout"})
#: Names listed in a message.
_NAMED = 3


def check_version(document: Mapping[str, Any]) -> None:
    """Refuse another form of document and another architecture (``version``)."""
    found = {name: document.get(name) for name in ("format", "format_version", "architecture_version")}
    expected = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture_version": ARCHITECTURE_VERSION,
    }
    for name, ours in expected.items():
        if found[name] != ours:
            raise CheckpointRefused(
                Reason.VERSION,
                f"{name} is {_short(found[name])}, here {ours!r}; export it for {ARCHITECTURE_VERSION}",
            )


def config_of(document: Mapping[str, Any], expected: TamiyoGNNConfig) -> TamiyoGNNConfig:
    """Return the network's config, which differs from ``expected`` in dropouts at most.

    Raises:
        CheckpointRefused: ``config``.
    """
    values, ours = field_of(document, "config", dict), expected.to_dict()
    if values.keys() != ours.keys():
        raise CheckpointRefused(
            Reason.CONFIG,
            f"config lacks {_names(ours.keys() - values.keys())} and has unknown "
            f"{_names(values.keys() - ours.keys())}; write TamiyoGNNConfig.to_dict()",
        )
    for name, value in values.items():
        dropout = name in _TRAINING_ONLY and type(value) is float and 0.0 <= value < 1.0
        if not dropout and (type(value) is not type(ours[name]) or value != ours[name]):
            raise CheckpointRefused(
                Reason.CONFIG, f"config.{name} is {_short(value)}, here {ours[name]!r}; train with our dimensions"
            )
    return TamiyoGNNConfig(**{item.name: values[item.name] for item in fields(TamiyoGNNConfig)})


def check_manifest(document: Mapping[str, Any]) -> None:
    """Refuse weights that were trained on rows of another layout (``manifest``)."""
    manifest = field_of(document, "manifest", dict)
    if digest_of_manifest(manifest) != manifest_digest():
        difference = _difference(manifest, feature_manifest(), "manifest")
    elif document.get("manifest_digest") != manifest_digest():
        difference = f"manifest_digest is {_short(document.get('manifest_digest'))}, its manifest has another"
    else:
        return
    raise CheckpointRefused(
        Reason.MANIFEST,
        f"{difference}; the network would read other features than it was trained on: train with the feature "
        "and relation tables of this release",
    )


def check_actions(document: Mapping[str, Any]) -> None:
    """Refuse outputs that mean something else here (``action_table``)."""
    ours = {
        "actions": list(ACTIONS),
        "policy_params": [dict(entry) for entry in POLICY_PARAMS],
        "blending_methods": list(BLENDING),
    }
    for name, table in ours.items():
        if document.get(name) != table:
            raise CheckpointRefused(
                Reason.ACTION_TABLE,
                f"{_difference(document.get(name), table, name)}; an output of the network would be taken for "
                "another: train with the action table of this release",
            )


def registries_of(document: Mapping[str, Any], live: Registries) -> dict[str, dict[str, int]]:
    """Return the snapshots by vocabulary, each a beginning of the live registry or a continuation of it.

    Raises:
        CheckpointRefused: ``registry_digest_mismatch`` or ``registry_renumbered``.
    """
    found = field_of(document, "registries", dict)
    if found.keys() != CAPACITIES.keys():
        raise CheckpointRefused(
            Reason.REGISTRY_RENUMBERED,
            f"registries lack {_names(CAPACITIES.keys() - found.keys())} and have unknown "
            f"{_names(found.keys() - CAPACITIES.keys())}; store Registries.snapshots()",
        )
    snapshots = {name: _entries(name, snapshot) for name, snapshot in found.items()}
    registries_to_adopt(snapshots, live)
    return snapshots


def registries_to_adopt(
    snapshots: Mapping[str, Mapping[str, int]], live: Registries
) -> dict[str, Mapping[str, int]]:
    """Return those of ``snapshots`` that know more than ``live``: adopt them before the policy decides.

    Raises:
        CheckpointRefused: ``registry_renumbered``: a key has another number here.
    """
    longer = {}
    for name, entries in snapshots.items():
        registry = live[name]
        if is_prefix(entries, registry.entries):
            continue
        try:
            Registry(name, registry.capacity, registry.entries).adopt(entries)
        except RegistryRenumbered as error:
            raise CheckpointRefused(Reason.REGISTRY_RENUMBERED, str(error)) from None
        longer[name] = entries
    return longer


def norms_of(document: Mapping[str, Any]) -> dict[str, EwmaNorm]:
    """Return the moving statistics by metric.

    Raises:
        CheckpointRefused: ``norms``.
    """
    try:
        return restore_norms(field_of(document, "norms", dict))
    except NormsCorrupt as error:
        raise CheckpointRefused(Reason.NORMS, str(error)) from None


def check_tensors(document: Mapping[str, Any], specs: Mapping[str, TensorSpec], config: TamiyoGNNConfig) -> None:
    """Refuse tensors that are not those of ``TamiyoGNN(config)``: ``names``, ``shapes`` or ``dtypes``."""
    expected = expected_shapes(config)
    if specs.keys() != expected.keys():
        raise CheckpointRefused(
            Reason.NAMES,
            f"tensors missing: {_names(expected.keys() - specs.keys())}, unknown: "
            f"{_names(specs.keys() - expected.keys())}; store the state_dict() of TamiyoGNN(config)",
        )
    _compare(specs, Reason.SHAPES, lambda name, spec: (spec.shape, expected[name]))
    _compare(specs, Reason.DTYPES, lambda _, spec: (spec.dtype, DTYPE))
    listed = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in specs.items()}
    if document.get("tensors") != listed:
        raise CheckpointRefused(
            Reason.SHAPES,
            f"{_difference(document.get('tensors'), listed, 'tensors')}: the document describes other tensors "
            "than the file holds; write it with tamiyo_stream.checkpoints.writing",
        )


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite (``not_finite``)."""
    # A finite sum proves that all are finite, at less cost than asking each; where it is not, each is asked.
    bad = [
        name
        for name, value in state.items()
        if not torch.isfinite(value.sum()) and not torch.isfinite(value).all()
    ]
    if bad:
        raise CheckpointRefused(
            Reason.NOT_FINITE, f"tensors with NaN or infinite weights: {_names(bad)}; train it again, more slowly"
        )


def _compare(
    specs: Mapping[str, TensorSpec], reason: Reason, pair: Callable[[str, TensorSpec], tuple[Any, Any]]
) -> None:
    for name, spec in specs.items():
        theirs, ours = pair(name, spec)
        if theirs != ours:
            raise CheckpointRefused(
                reason,
                f"tensor {name!r} has {theirs}, the network {ours}; store the float32 state_dict() of "
                "TamiyoGNN(config)",
            )


def _entries(name: str, snapshot: Any) -> dict[str, int]:
    entries = snapshot.get("entries") if isinstance(snapshot, dict) else None
    if not isinstance(entries, dict) or not all(key and type(index) is int for key, index in entries.items()):
        raise CheckpointRefused(
            Reason.REGISTRY_RENUMBERED, f"registry {name!r} is no object of key and index; store its snapshot"
        )
    digest = digest_of(entries)
    if digest != snapshot.get("digest"):
        raise CheckpointRefused(
            Reason.REGISTRY_DIGEST_MISMATCH,
            f"registry {name!r} has the digest {digest}, the checkpoint says {_short(snapshot.get('digest'))}; "
            "write the checkpoint again",
        )
    return entries


def _difference(theirs: Any, ours: Any, where: str) -> str:
    """Return the first place where ``theirs`` is not ``ours``, as text."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if theirs.keys() != ours.keys():
            return (
                f"{where} lacks {_names(ours.keys() - theirs.keys())} and has unknown "
                f"{_names(theirs.keys() - ours.keys())}"
            )
        key = next((key for key in ours if theirs[key] != ours[key]), None)
        return where if key is None else _difference(theirs[key], ours[key], f"{where}.{key}")
    if isinstance(ours, list) and isinstance(theirs, list) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        index = next((index for index, (one, other) in pairs if one != other), None)
        return where if index is None else _difference(theirs[index], ours[index], f"{where}[{index}]")
    if isinstance(ours, list) and isinstance(theirs, list):
        return f"{where} has {len(theirs)} entries, here {len(ours)}"
    return f"{where} is {_short(theirs)}, here {_short(ours)}"


def _names(names: Any) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return (", ".join(_short(name) for name in ordered[:_NAMED]) or "none") + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
