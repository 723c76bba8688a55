"""The worker as a process of its own, as an operator would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from consumers.lease import lease_key

#: Importing torch and building the network takes seconds on a busy machine.
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05


class WorkerFailed(RuntimeError):
    """The worker did not become ready or ended early; the text holds the end of its log."""


class WorkerProcess:
    """``tamiyo-stream run`` as a child process; its log goes to ``log_file``.

    Args:
        environment: settings, as ``TAMIYO_…`` variables. Settings of the surrounding shell do not reach it.
    """

    def __init__(self, environment: Mapping[str, str], log_file: Path, *, key_prefix: str = "tamiyo") -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAMIYO_")}
        self._environment = {**inherited, **environment}
        self._log_file = log_file
        self._lease = lease_key(key_prefix, 0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None where it does not run."""
        return self._process.pid if self._process is not None else None

    def start(self) -> Self:
        """Start the process; :meth:`wait_until_ready` waits for it."""
        with self._log_file.open("ab") as log:
            # Its own session: Ctrl-C must reach the demo first, which stops the worker in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tamiyo_stream", "run"],
                env=self._environment,
                cwd=self._log_file.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the worker holds its partition's lease: from then on it decides.

        Raises:
            WorkerFailed: it ended, or ``timeout_s`` passed.
        """
        client = redis.Redis.from_url(self._environment["TAMIYO_REDIS_URL"])
        deadline = time.monotonic() + timeout_s
        try:
            while not client.exists(self._lease):
                self.check()
                if time.monotonic() > deadline:
                    raise WorkerFailed(f"the worker was not ready within {timeout_s:.0f} s\n{self.log_tail()}")
                time.sleep(POLL_S)
        finally:
            client.close()

    def check(self) -> None:
        """Raise WorkerFailed where the process has ended."""
        status = self._process.poll() if self._process is not None else None
        if status is not None:
            raise WorkerFailed(f"the worker ended with status {status}\n{self.log_tail()}")

    def stop(self) -> int | None:
        """Stop the worker (SIGTERM, then SIGKILL) and return its exit status; None where it was not running."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self) -> None:
        """End the worker at once, as a crash would (SIGKILL)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last ``lines`` of the log."""
        text = self._log_file.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
