"""The norms file, ``gnn_norms.json``: the moving statistics of the newest runs (requirements ``000`` §3).

The truth is the run's saved state in Redis; the file serves whoever has none. One JSON object, newest run first:
``{"version": 1, "runs": {run_id: {name: {"mean", "var", "count"}}}, "digest": ...}``. The digest is the SHA-256
(hex) of the runs' compact JSON with sorted keys.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tamiyo_stream.runs.durable_file import FileNotSaved, replace_file
from tamiyo_stream.runs.norms import NormsCorrupt, export_norms, restore_norms
from tamiyo_stream.runs.state import EwmaNorm

__all__ = ["MAX_BYTES", "MAX_RUNS", "VERSION", "NormsCorrupt", "NormsWriteFailed", "read_norms", "write_norms"]

VERSION = 1
MAX_RUNS = 1024
#: :data:`MAX_RUNS` runs with the longest ids and all statistics take about 3 MB.
MAX_BYTES = 8 * 1024 * 1024


class NormsWriteFailed(FileNotSaved):
    """The norms file could not be saved. The statistics go on in memory; a later flush tries again."""

    kind = "norms file"


def write_norms(path: Path, runs: Mapping[str, Mapping[str, EwmaNorm]]) -> int:
    """Save the statistics of ``runs``, newest first, by write, fsync and rename; return how many were saved.

    The first :data:`MAX_RUNS` are saved, older ones are left out.

    Raises:
        NormsWriteFailed: the file holds what it held before.
    """
    kept = {run_id: export_norms(norms) for run_id, norms in islice(runs.items(), MAX_RUNS)}
    text = json.dumps({"version": VERSION, "runs": kept, "digest": _digest_of(kept)})
    try:
        if len(text) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{len(text)} bytes, at most {MAX_BYTES} are read")
        replace_file(path, text)
    except OSError as error:
        raise NormsWriteFailed(path, error) from error
    return len(kept)


def read_norms(path: Path) -> dict[str, dict[str, EwmaNorm]]:
    """Return the statistics by run id, newest first; nothing where there is no file.

    Raises:
        NormsCorrupt: the file is unreadable, damaged or not of this version; nothing of it is used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise NormsCorrupt(f"norms file {path}", f"cannot be read ({error.strerror})") from error
    try:
        return _parse(data, f"norms file {path}")
    except (ValueError, RecursionError) as error:
        if isinstance(error, NormsCorrupt):
            raise
        raise NormsCorrupt(f"norms file {path}", f"is not JSON ({error})") from error


def _parse(data: bytes, where: str) -> dict[str, dict[str, EwmaNorm]]:
    if len(data) > MAX_BYTES:
        raise NormsCorrupt(where, f"is larger than {MAX_BYTES} bytes")
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise NormsCorrupt(where, f"is not of version {VERSION}")
    runs = content.get("runs")
    if not isinstance(runs, dict) or len(runs) > MAX_RUNS:
        raise NormsCorrupt(f"{where}: runs", f"is no object of at most {MAX_RUNS} runs")
    if content.get("digest") != _digest_of(runs):
        raise NormsCorrupt(f"{where}: digest", "is not that of its runs")
    return {run_id: restore_norms(norms, where=f"{where}: runs.{run_id}") for run_id, norms in runs.items()}


def _digest_of(runs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(runs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
