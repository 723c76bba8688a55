"""The workers of a scenario: real processes, started from the nursery, killed without warning."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process; ``name`` is its consumer name. An ordinary one may serve several scenarios."""

    name: str
    pid: int
    ordinary: bool

    def alive(self) -> bool:
        """Whether the process still runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        while self.alive():
            time.sleep(0.001)

    def terminate(self) -> None:
        """SIGTERM: drain and stop."""
        os.kill(self.pid, signal.SIGTERM)

    def lift_file_limit(self) -> None:
        """Let the disk have room again."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def memory_mb(self) -> float:
        """Return the resident set in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Nursery:
    """Starts workers; ``environment`` is common to all of them. Leaving the block ends those still alive."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._count = 0
        self.workers: list[Worker] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TAMIYO_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=ROOT,
            env={**clean, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def start(self, *, file_limit: int | None = None, fault: str | None = None, **environment: str) -> Worker:
        """Fork one more worker; it is ready about a second later. ``fault``: the point at which it will die."""
        self._count += 1
        name = f"w{self._count}"
        directory = self._directory / name
        directory.mkdir()
        order = {
            "log": os.devnull if file_limit is not None else str(directory / "log"),
            "file_limit": file_limit,
            "fault": fault,
            "environment": {
                **self._environment,
                "TAMIYO_WORKER_ID": name,
                "TAMIYO_VAR_DIR": str(directory / "var"),
                **environment,
            },
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        ordinary = file_limit is None and fault is None and not environment
        worker = Worker(name, int(self._answer()), ordinary)
        self.workers.append(worker)
        return worker

    def alive(self) -> list[Worker]:
        """Return the workers that run."""
        return [worker for worker in self.workers if worker.alive()]

    def log_of(self, worker: Worker) -> str:
        """Return what the worker has logged."""
        return (self._directory / worker.name / "log").read_text(encoding="utf-8", errors="replace")

    def kill_all(self) -> None:
        """End every worker at once."""
        for worker in self.alive():
            worker.kill()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the nursery ended with status {self._process.wait()}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
