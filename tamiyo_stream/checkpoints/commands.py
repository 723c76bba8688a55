"""``tamiyo-stream checkpoint init | inspect | verify | diff``: what each prints, and its exit status.

0: done, or sound, or equal. 1: refused, or different. Nothing here changes a registry or a running worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from schemas.signing import Keyring
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.comparison import document_changes, weight_distances
from tamiyo_stream.checkpoints.compatibility import registries_to_adopt
from tamiyo_stream.checkpoints.contents import Contents
from tamiyo_stream.checkpoints.reading import Trust, open_contents, read_checkpoint, read_file
from tamiyo_stream.checkpoints.refusal import CheckpointRefused
from tamiyo_stream.checkpoints.writing import CheckpointNotSaved, write_checkpoint
from tamiyo_stream.graph.registries import Registries, RegistryCorrupt
from tamiyo_stream.model.config import ARCHITECTURE_VERSION
from tamiyo_stream.model.network import build_network

#: Of the registries' entries.
_DIGITS = 12


def init(
    seed: int,
    out: Path,
    *,
    registries_dir: Path | None = None,
    keyring: Keyring | None = None,
    console: Console | None = None,
) -> int:
    """Write an untrained policy to ``out``: equal seeds and registries give equal bytes.

    ``registries_dir`` holds the worker's registries (its ``var_dir``); without it only fixed categories are known.
    """
    console = _console(console)
    try:
        checkpoint = Checkpoint.of(
            build_network(seed=seed),
            policy_version=f"{ARCHITECTURE_VERSION}-seed{seed}",
            provenance=Provenance(created_by="tamiyo-stream checkpoint init", note=f"untrained, seed {seed}"),
            registries=Registries(registries_dir).snapshots(),
        )
        digest = write_checkpoint(out, checkpoint, keyring)
    except (CheckpointNotSaved, RegistryCorrupt, ValueError) as error:
        return _fail(console, str(error))
    _print(console, f"wrote {out}, {out.stat().st_size} bytes")
    _rows(console, {"sha256": digest, "policy version": checkpoint.policy_version, "digest": checkpoint.digest})
    return 0


def inspect(path: Path, *, console: Console | None = None) -> int:
    """Print what the file says about itself, whether or not it fits this worker. Nothing of it is executed."""
    console = _console(console)
    try:
        data = read_file(path)
        contents = open_contents(data)
    except CheckpointRefused as refused:
        return _refuse(console, path, refused)
    _rows(console, {"file": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    _rows(console, _summary(contents))
    return 0


def verify(
    path: Path,
    *,
    sha256: str | None = None,
    registries_dir: Path | None = None,
    keyring: Keyring | None = None,
    console: Console | None = None,
) -> int:
    """Check that a worker with these registries and this key would take the checkpoint; print why not."""
    console = _console(console)
    try:
        live = Registries(registries_dir)
        checkpoint = read_checkpoint(path, Trust(sha256=sha256, keyring=keyring), registries=live)
    except CheckpointRefused as refused:
        return _refuse(console, path, refused)
    except RegistryCorrupt as error:
        return _fail(console, str(error))
    _print(console, f"sound: {path}")
    adopted = registries_to_adopt(checkpoint.registries, live)
    _rows(
        console,
        {
            "policy version": checkpoint.policy_version,
            "digest": checkpoint.digest,
            "signature": "valid" if keyring else "not checked: no key is configured",
            **{
                f"registry {name}": f"{len(entries) - len(live[name])} keys more than here; they are adopted first"
                for name, entries in adopted.items()
            },
        },
    )
    return 0


def diff(first: Path, second: Path, *, console: Console | None = None) -> int:
    """Print what differs between two checkpoints; return 1 where something does."""
    console = _console(console)
    try:
        one, other = (open_contents(read_file(path)) for path in (first, second))
        moved = [distance for distance in weight_distances(one, other) if distance.changed]
    except CheckpointRefused as refused:
        return _fail(console, f"{first} and {second}: refused ({refused.reason}): {refused}")
    changes = document_changes(one.document, other.document)
    for change in changes:
        _print(console, f"{change.where}: {change.first} → {change.second}")
    names = sorted(one.tensors.keys() | other.tensors.keys())
    unequal = [name for name in names if one.tensors.get(name) != other.tensors.get(name)]
    for name in unequal:
        _print(console, f"tensor {name}: {_spec(one, name)} → {_spec(other, name)}")
    for distance in moved:
        _print(
            console,
            f"{distance.module:<32} moved {distance.relative:.3g} of its norm, "
            f"{distance.changed} of {distance.total} tensors",
        )
    if changes or unequal or moved:
        return 1
    _print(console, "no difference")
    return 0


def _summary(contents: Contents) -> dict[str, Any]:
    document = contents.document
    values = sum(_elements(spec.shape) for spec in contents.tensors.values())
    registries = document.get("registries")
    return {
        **{name.replace("_", " "): document.get(name) for name in ("policy_version", "architecture_version")},
        "weights": f"{values} in {len(contents.tensors)} tensors, digest {document.get('state_digest')}",
        "config": _pairs(document.get("config")),
        "manifest digest": document.get("manifest_digest"),
        **{f"provenance: {key}": value for key, value in _mapping(document.get("provenance")).items() if value},
        **{
            f"registry {name}": f"{len(_mapping(snapshot.get('entries')))} keys, "
            f"digest {str(snapshot.get('digest'))[:_DIGITS]}"
            for name, snapshot in _mapping(registries).items()
            if isinstance(snapshot, dict)
        },
        "norms": ", ".join(_mapping(document.get("norms"))) or "the priors",
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _pairs(value: Any) -> str:
    return ", ".join(f"{name} {entry}" for name, entry in _mapping(value).items())


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count


def _spec(contents: Contents, name: str) -> str:
    spec = contents.tensors.get(name)
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"


def _console(console: Console | None) -> Console:
    return console or Console()


def _print(console: Console, line: str) -> None:
    # Names in a checkpoint are somebody else's text: control characters do not reach the terminal.
    text = "".join(character if character.isprintable() else "�" for character in line)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _rows(console: Console, rows: Mapping[str, Any]) -> None:
    for name, value in rows.items():
        _print(console, f"{name:<30} {value}")


def _refuse(console: Console, path: Path, refused: CheckpointRefused) -> int:
    return _fail(console, f"{path}: refused ({refused.reason}): {refused}")


def _fail(console: Console, text: str) -> int:
    _print(console, text)
    return 1
