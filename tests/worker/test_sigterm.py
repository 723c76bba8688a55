"""SIGTERM: a worker process under load hands everything back and ends in order; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import redis

from consumers.lease import lease_key
from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.runs.norms_file import read_norms
from tamiyo_stream.worker.service import DRAIN_TIMEOUT_S
from tests.chaos.ledger import saved_run
from tests.upstream.waiting import wait_until

RUNS = ("a", "b", "c")
KEYRING = Keyring({"k1": b"secret"})
#: Seconds from SIGTERM to the end, by the requirements.
STOP_S = 5.0
START_S = 60.0


class Process:
    """``tamiyo-stream run`` as an orchestrator sees it: signals in, an exit status out."""

    def __init__(self, url: str, directory: Path) -> None:
        self.var_dir, self._log = directory / "var", directory / "log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAMIYO_")}
        environment = {
            **inherited,
            "TAMIYO_REDIS_URL": url,
            "TAMIYO_VAR_DIR": str(self.var_dir),
            "TAMIYO_SIGNING_SECRET": "secret",
            "TAMIYO_WORKER_ID": "w1",
            "TAMIYO_WEB_HOST": "",
            "TAMIYO_FLUSH_INTERVAL_S": "3600",  # what the files hold is what the end of the worker wrote
        }
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "tamiyo_stream", "run"]
            self._popen = subprocess.Popen(command, env=environment, cwd=directory, stdout=log, stderr=log)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def logged_at(self, event: str) -> float:
        """Seconds since 1970 at which the line ``event`` was written."""
        stamp = next(line.split()[0] for line in self.log().splitlines() if f"] {event} " in f"{line} ")
        return datetime.fromisoformat(stamp).timestamp()

    def terminate(self) -> None:
        self._popen.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        return self._popen.wait(timeout_s)

    def end(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()


class Load:
    """Steps of several runs, published flat out from a thread until the block is left."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        with redis.Redis.from_url(self._url) as bus:
            step = 0
            while not self._over.wait(0.005):
                step += 1
                for run_id in RUNS:
                    packet = SystemStatePacket(
                        run_id=run_id,
                        packet_id=f"{run_id}-{step}",
                        global_step=step,
                        timestamp_ns=step,
                        training_loss=1.0 + step % 3,
                    )
                    bus.xadd(Stream.STATE.value, encode_entry(packet, KEYRING))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def bus(redis_url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def process(redis_url, tmp_path) -> Iterator[Process]:
    process = Process(redis_url, tmp_path)
    yield process
    process.end()


def test_sigterm_under_load_leaves_nothing_pending_and_everything_saved(process, bus, redis_url) -> None:
    with Load(redis_url):
        wait_until(lambda: bus.xlen(Stream.COMMANDS.value) >= 10, "the worker decides", START_S)
        assert bus.exists(lease_key("tamiyo", 0))
        process.terminate()
        status = process.wait(STOP_S)
    assert status == 0, process.log()
    assert bus.xpending(Stream.STATE.value, "tamiyo")["pending"] == 0
    assert not bus.exists(lease_key("tamiyo", 0))
    assert not bus.zcard("tamiyo:workers")
    saved = {run_id: saved_run(bus, run_id, 1).norms for run_id in RUNS}
    assert read_norms(process.var_dir / "gnn_norms.json") == saved
    Registries(process.var_dir / "registries")  # raises where a file is damaged
    assert not list(process.var_dir.rglob("*.tmp"))


def test_sigterm_while_redis_is_away_ends_in_time_and_saves_the_files(
    process, bus, redis_url, redis_server
) -> None:
    with Load(redis_url):
        wait_until(lambda: bus.xlen(Stream.COMMANDS.value) >= 10, "the worker decides", START_S)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        process.terminate()
        status = process.wait(STOP_S)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    assert status == 0, process.log()
    assert read_norms(process.var_dir / "gnn_norms.json").keys() == set(RUNS)


def test_a_second_sigterm_ends_the_worker_before_it_has_drained(process, bus, redis_url, redis_server) -> None:
    with Load(redis_url):
        wait_until(lambda: bus.xlen(Stream.COMMANDS.value) >= 10, "the worker decides", START_S)
    os.kill(redis_server.pid, signal.SIGSTOP)  # so that it cannot drain
    try:
        process.terminate()
        wait_until(lambda: "draining" in process.log(), "the worker drains")
        process.terminate()
        process.wait(STOP_S)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    assert "stopping_at_once" in process.log()
    assert process.logged_at("stopped") - process.logged_at("stopping_at_once") < DRAIN_TIMEOUT_S / 2
