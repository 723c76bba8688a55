"""What every scenario stands on: a real Redis that can be restarted, workers, upstreams, and the final account."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumers.lease import lease_key
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, free_port
from tests.chaos import upstream
from tests.chaos.ledger import GROUP, Ledger, read_ledger, saved_run, state_keys
from tests.chaos.upstream import SECRET, Plan
from tests.chaos.workers import Nursery, Worker

PARTITIONS = 2
LEASE_TTL_MS = 1_000
#: Seconds after the last fault within which everything must be accounted for.
PATIENCE_S = 60.0
POLL_S = 0.05


class Unsettled(AssertionError):
    """The system did not come to rest; the text is the account so far."""


class Rig:
    """One Redis that writes its data to disk and a nursery of workers. Scenarios follow each other on it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "redis"
        self._port = free_port()
        self._server: EmbeddedRedis | None = None
        self._publishers: list[subprocess.Popen[str]] = []
        self._closing = ExitStack()
        self._round = 0
        self.client = redis.Redis(port=self._port, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        self._data.mkdir()
        self.start_redis()
        self.nursery = self._closing.enter_context(Nursery(directory, self._environment()))

    @property
    def port(self) -> int:
        """The server's own port, behind any proxy."""
        return self._port

    def _environment(self) -> dict[str, str]:
        return {
            "TAMIYO_REDIS_URL": self.url(),
            "TAMIYO_SIGNING_SECRET": SECRET,
            "TAMIYO_PARTITIONS": str(PARTITIONS),
            "TAMIYO_LEASE_TTL_MS": str(LEASE_TTL_MS),
            "TAMIYO_MIN_IDLE_MS": "500",
            "TAMIYO_CLAIM_COUNT": "4",
            "TAMIYO_BLOCK_MS": "50",
        }

    def url(self, port: int | None = None) -> str:
        """Return the URL of the server, or of a proxy in front of it."""
        return f"redis://127.0.0.1:{port or self._port}/0"

    def start_redis(self) -> None:
        """Start the server on what its directory holds."""
        self._server = EmbeddedRedis("--appendonly", "yes", port=self._port, directory=self._data).start()

    def kill_redis(self, *, emptied: bool) -> None:
        """SIGKILL the server; ``emptied`` takes its data away too."""
        assert self._server is not None
        self._server.stop(kill=True)
        if emptied:
            shutil.rmtree(self._data)
            self._data.mkdir()

    def begin(self, workers: int = 2, **environment: str) -> list[Worker]:
        """Start a scenario: an empty bus, runs of new names, ``workers`` workers with ``environment``."""
        self._round += 1
        kept = [] if environment else [worker for worker in self.nursery.alive() if worker.ordinary][:workers]
        for worker in self.nursery.alive():
            if worker not in kept:
                worker.kill()
        self.client.flushall()
        return kept + [self.nursery.start(**environment) for _ in range(workers - len(kept))]

    def plan(self, seed: int, **changes: Any) -> Plan:
        """Return a plan for the runs of this scenario."""
        return Plan(seed, name=f"{self._round}-run", **changes)

    def wait_until_shared(self) -> None:
        """Wait until every partition has an owner and no two the same: nothing is about to move."""
        keys = [lease_key("tamiyo", number) for number in range(PARTITIONS)]

        def shared() -> bool:
            owners: Any = self.client.mget(keys)
            return None not in owners and len(set(owners)) == PARTITIONS

        self.until(shared, "every worker holds its share")

    def publish(self, plan: Plan) -> None:
        """Start an upstream."""
        self._publishers.append(upstream.start(self.url(), plan))

    def finish_publishing(self) -> int:
        """Wait for the upstreams; return how many entries they sent."""
        sent = 0
        while self._publishers:
            output, _ = self._publishers.pop().communicate(timeout=PATIENCE_S * 3)
            sent += int(output)
        return sent

    def commands(self) -> int:
        """Return how many commands there are."""
        return int(self.client.xlen("oona.tamiyo.commands"))  # type: ignore[arg-type]  # sync-or-async reply types

    def progress(self, count: int = 1, description: str = "more commands") -> float:
        """Wait for ``count`` more commands; return the seconds it took."""
        began, known = time.monotonic(), self.commands()
        self.until(lambda: self.commands() >= known + count, description)
        return time.monotonic() - began

    def until(self, condition: Callable[[], object], description: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until ``condition`` holds.

        Raises:
            Unsettled: it did not in time.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(self.nursery.log_of(worker)[-2000:] for worker in self.nursery.alive())
                raise Unsettled(f"still waiting until {description}\n{logs}")
            time.sleep(POLL_S)

    def settle(self) -> Ledger:
        """Wait until everything published is accounted for; return the account.

        Raises:
            Unsettled: it is not in time; the text says what is missing.
        """
        self.finish_publishing()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ledger = read_ledger(self.client, PARTITIONS)
            if ledger.settled:
                return ledger
            if time.monotonic() > deadline:
                logs = "\n".join(self.nursery.log_of(worker)[-3000:] for worker in self.nursery.alive())
                raise Unsettled(
                    f"lost {ledger.lost[:9]}, unrecorded {ledger.unrecorded}, pending {ledger.pending}, "
                    f"unread {ledger.unread}\n{logs}"
                )
            time.sleep(5 * POLL_S)

    def differing_runs(self) -> list[str]:
        """Return the runs whose state is not that of a run without any fault, published now."""
        published = read_ledger(self.client, PARTITIONS).published
        run_ids = {packet_id.rpartition("-")[0] for packet_id in published}
        last = max(int(packet_id.rpartition("-")[2]) for packet_id in published)
        clean = Plan(seed=0, runs=1, steps=last, rate=0, name=f"{self._round}-clean")
        self.publish(clean)
        self.settle()
        expected = saved_run(self.client, clean.run_ids[0], PARTITIONS)
        runs = [saved_run(self.client, run_id, PARTITIONS) for run_id in sorted(run_ids)]
        return [run.run_id for run in runs if (run.norms, run.last_step) != (expected.norms, expected.last_step)]

    def var_dir(self, worker: Worker) -> Path:
        """Return where the worker keeps its files."""
        return self._directory / worker.name / "var"

    def delete_groups(self) -> None:
        """Remove the workers' group from the inputs."""
        for key in state_keys(PARTITIONS):
            self.client.xgroup_destroy(key, GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for publisher in self._publishers:
            publisher.kill()
            publisher.communicate()
        self._closing.close()
        self.client.close()
        if self._server is not None:
            self._server.stop(kill=True)
