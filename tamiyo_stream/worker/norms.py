"""Keeps ``gnn_norms.json``: the normalisation tables of the newest runs (requirements ``000`` §3, ``002`` §4).

The truth is the run's saved state in Redis. The file serves whoever has no Redis: offline training reads it, and a
run whose saved state is gone goes on from it instead of from the priors.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from tamiyo_stream.runs.norms import NormsCorrupt
from tamiyo_stream.runs.norms_file import MAX_RUNS, read_norms, write_norms
from tamiyo_stream.runs.state import EwmaNorm, RunState

log = structlog.get_logger("tamiyo.norms")


class NormsKeeper:
    """The tables by run id, newest last; bounded as the file is.

    A damaged file is put aside as ``<name>.corrupt``, said in the log, and started afresh.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: dict[str, dict[str, EwmaNorm]] = self._load()
        self._changed = False

    def restore(self, run_id: str) -> dict[str, EwmaNorm]:
        """Return the table of a run that has no saved state; empty (the priors hold) where none is known."""
        return dict(self._tables.get(run_id, {}))

    def keep(self, run: RunState) -> None:
        """Take over the run's table for the next flush."""
        self._tables.pop(run.run_id, None)
        self._tables[run.run_id] = dict(run.norms)
        while len(self._tables) > MAX_RUNS:
            del self._tables[next(iter(self._tables))]
        self._changed = True

    def flush(self) -> None:
        """Write the file where something changed. May run in a thread of its own.

        Raises:
            NormsWriteFailed: the disk refuses; what changed is kept for the next try.
        """
        if not self._changed:
            return
        self._changed = False  # before the copy: what is kept while the file is written is saved next time
        try:
            write_norms(self._path, dict(reversed(list(self._tables.items()))))
        except OSError:
            self._changed = True
            raise

    def _load(self) -> dict[str, dict[str, EwmaNorm]]:
        try:
            newest_first = read_norms(self._path)
        except NormsCorrupt as error:
            aside = self._path.with_name(self._path.name + ".corrupt")
            self._path.replace(aside)
            log.warning("norms_unreadable", detail=str(error), kept_as=str(aside))
            return {}
        return dict(reversed(newest_first.items()))
