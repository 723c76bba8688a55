"""Writes what is kept in files from time to time, off the event loop (design §5, §6)."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog
from anyio import to_thread

log = structlog.get_logger("tamiyo.worker")


class PeriodicFlush:
    """Calls ``write`` on a thread; one log line when that begins to fail, one when it works again.

    Args:
        name: what is written, for the log: ``registries`` gives ``registries_not_saved``.
        write: saves what changed; raises OSError where the disk refuses.
    """

    def __init__(self, name: str, write: Callable[[], object]) -> None:
        self.name = name
        self._failed, self._recovered = f"{name}_not_saved", f"{name}_saved_again"
        self._write = write
        self._failing = False

    async def flush_for_ever(self, interval_s: float, beat: Callable[[], None]) -> None:
        """Flush every ``interval_s`` seconds; ``beat`` is called in every round."""
        while True:
            beat()
            await anyio.sleep(interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Flush now; a disk that refuses is logged, the next flush tries again."""
        try:
            await to_thread.run_sync(self._write)
        except OSError as error:
            if not self._failing:
                log.warning(self._failed, detail=str(error))
            self._failing = True
        else:
            if self._failing:
                log.info(self._recovered)
            self._failing = False
