"""The whole in-path on a real Redis with the worker as a process: latency, small messages, an idle bus.

What is measured is what an upstream sees: from the XADD of a state to the arrival of its committed command, over a
signed bus, one state at a time. The probe, the server and the worker share the machine's cores.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import redis

from schemas.catalogue import Stream
from schemas.entry import EntryFields, encode_entry
from schemas.enums import SeedLifecycleStage
from schemas.kasmina import SeedExport, SeedState
from schemas.record import Message
from schemas.signing import Keyring
from schemas.urza import Blueprint
from tamiyo_stream.bench.synthetic_run import synthetic_packet, synthetic_run, synthetic_tables
from tamiyo_stream.demo.worker_process import WorkerProcess
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis

KEY_ID = "bench"
GROUP = "tamiyo"
#: Edges per node of the run, as host models show.
EDGES_PER_NODE = 5
#: States before the first that counts: plans are built and caches filled.
WARM_UP = 20
#: Runs that the small messages belong to, in turns: of many, few messages share a commit; of one, most do.
RUNS = (64, 1)
#: Entries per round trip of their publisher.
_CHUNK = 500
ANSWER_TIMEOUT_MS = 20_000
SMALL_TIMEOUT_S = 120.0
#: Between looks at the group; and quiet before the idle bus is measured, for the start to be over.
POLL_S, SETTLE_S = 0.005, 1.0


class NoAnswer(RuntimeError):
    """The worker did not answer in time; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A worker that is ready, and a client on its bus."""

    client: redis.Redis
    worker: WorkerProcess
    keyring: Keyring

    def entry(self, message: Message) -> Any:
        """Return the signed fields that publish ``message``."""
        return encode_entry(message, self.keyring)

    def publish(self, stream: Stream, message: Message) -> None:
        """Publish ``message``."""
        self.client.xadd(stream.value, self.entry(message))


@dataclass(frozen=True, slots=True)
class Timed:
    """Per state: ms from XADD to command, and the latency that the command states.

    ``cpu_ms``: CPU time of the worker per state, which other processes on the machine inflate least. ``nodes``: of
    the graph.
    """

    waited_ms: Sequence[float]
    stated_ms: Sequence[float]
    cpu_ms: float
    nodes: int


def pipeline_figures(nodes: int, steps: int, messages: int, idle_s: float) -> dict[str, Any]:
    """Return the figures; the worker runs on the CPU with its default settings but for the step's deadline.

    Args:
        nodes: of the run whose states are timed.
        steps: states whose latency counts.
        messages: small messages.
        idle_s: seconds over which the idle worker is watched.

    Raises:
        NoAnswer: a state was not decided in time.
        WorkerFailed, RedisServerUnavailable: they could not be started.
    """
    with _bench() as bench:
        idle = _idle_cpu_percent(bench, idle_s)
        timed = _latencies(bench, nodes, steps)
        small = {f"{runs} runs": _small_messages(bench, messages, runs) for runs in RUNS}
    return {
        "nodes": timed.nodes,
        "steps": steps,
        "xadd_to_command_ms": _percentiles(timed.waited_ms),
        "decision_latency_ms": _percentiles(timed.stated_ms),
        "worker_cpu_ms_per_step": timed.cpu_ms,
        "small_messages": messages,
        "small_message": "SeedExport of one seed; what waits of a run is committed together",
        "small_messages_per_s": {runs: rate for runs, (rate, _) in small.items()},
        "small_messages_per_commit": {runs: messages / max(commits, 1) for runs, (_, commits) in small.items()},
        "idle_cpu_percent_of_a_core": idle,
        "idle_s": idle_s,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


@contextmanager
def _bench() -> Iterator[Bench]:
    secret = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as scratch, EmbeddedRedis() as server:
        environment = {
            "TAMIYO_REDIS_URL": server.url,
            "TAMIYO_SIGNING_KID": KEY_ID,
            "TAMIYO_SIGNING_SECRET": secret,
            "TAMIYO_VAR_DIR": str(Path(scratch) / "var"),
            "TAMIYO_DEVICE": "cpu",
            # What is late on a busy machine is measured, not cut off.
            "TAMIYO_DECISION_DEADLINE_MS": "1000",
            "TAMIYO_LOG_LEVEL": "warning",
        }
        with (
            WorkerProcess(environment, Path(scratch) / "worker.log") as worker,
            redis.Redis.from_url(server.url) as client,
        ):
            worker.wait_until_ready()
            yield Bench(client, worker, Keyring({KEY_ID: secret.encode()}))


def _latencies(bench: Bench, nodes: int, steps: int) -> Timed:
    """Publish one state after the other, each when the command on the last one is there."""
    blueprint, _, seeds = synthetic_run(nodes, EDGES_PER_NODE * nodes)
    tables = synthetic_tables(blueprint)
    for known in (*tables.hosts.values(), *tables.kernels.values()):
        bench.publish(Stream.BLUEPRINTS, known)
    for sheet in tables.sheets.values():
        bench.publish(Stream.SAFETY, sheet)
    bench.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=time.time_ns(), seeds=seeds))
    position, waited, stated, cpu_before = "0-0", [], [], 0.0
    for step in range(1, WARM_UP + steps + 1):
        if step == WARM_UP + 1:
            cpu_before = _cpu_s(bench.worker)
        packet = msgspec.structs.replace(
            synthetic_packet(blueprint, step=step, seed=step), timestamp_ns=time.time_ns()
        )
        fields = bench.entry(packet)
        started = time.perf_counter()
        bench.client.xadd(Stream.STATE.value, fields)
        position, command = _next_command(bench, position)
        waited.append((time.perf_counter() - started) * 1000)
        stated.append(float(msgspec.msgpack.decode(command[b"payload"])["annotations"]["decision_latency_ms"]))
    return Timed(
        waited_ms=waited[WARM_UP:],
        stated_ms=stated[WARM_UP:],
        cpu_ms=(_cpu_s(bench.worker) - cpu_before) * 1000 / steps,
        nodes=len(seeds) + len(tables.kernels) + 1 + _host_nodes(blueprint),
    )


def _next_command(bench: Bench, position: str) -> tuple[str, EntryFields]:
    """Return Redis's id and the fields of the first command after ``position``."""
    reply: Any = bench.client.xread({Stream.COMMANDS.value: position}, count=1, block=ANSWER_TIMEOUT_MS)
    if not reply:
        bench.worker.check()
        raise NoAnswer(f"no command within {ANSWER_TIMEOUT_MS} ms\n{bench.worker.log_tail()}")
    ((entry_id, fields),) = reply[0][1]
    return entry_id.decode(), fields


def _small_messages(bench: Bench, count: int, runs: int) -> tuple[float, int]:
    """Return how many small messages per second go from the stream to the commit, and the commits they took.

    They lie in the stream when the clock starts, so that the worker and not their publisher is measured; it is
    halted meanwhile.
    """
    before = _commits(bench)
    entries = _small_entries(bench, count, runs)
    with _halted(bench.worker):
        for start in range(0, count, _CHUNK):
            pipe = bench.client.pipeline(transaction=False)
            for fields in entries[start : start + _CHUNK]:
                pipe.xadd(Stream.SEEDS.value, fields)
            pipe.execute()
    started = time.perf_counter()
    while not _settled(bench):
        bench.worker.check()
        if time.perf_counter() - started > SMALL_TIMEOUT_S:
            raise NoAnswer(f"small messages are still pending\n{bench.worker.log_tail()}")
        time.sleep(POLL_S)
    return count / (time.perf_counter() - started), _commits(bench) - before


def _small_entries(bench: Bench, count: int, runs: int) -> list[Any]:
    seeds = [SeedState(seed_id="seed", stage=SeedLifecycleStage.TRAINING)]
    return [
        bench.entry(SeedExport(run_id=f"small-{runs}-{number % runs}", timestamp_ns=number + 1, seeds=seeds))
        for number in range(count)
    ]


def _settled(bench: Bench) -> bool:
    """Return whether every seed export was delivered and acknowledged."""
    client = bench.client
    groups: Any = client.xinfo_groups(Stream.SEEDS.value)
    stream: Any = client.xinfo_stream(Stream.SEEDS.value)
    (group,) = [group for group in groups if group["name"] == GROUP.encode()]
    return bool(group["pending"] == 0 and group["last-delivered-id"] == stream["last-generated-id"])


def _commits(bench: Bench) -> int:
    statistics: Any = bench.client.info("commandstats")
    return int(statistics.get("cmdstat_exec", {}).get("calls", 0))


@contextmanager
def _halted(worker: WorkerProcess) -> Iterator[None]:
    """Keep the worker from running; shorter than its lease lasts."""
    if worker.pid is None:
        raise NoAnswer(f"the worker does not run\n{worker.log_tail()}")
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def _idle_cpu_percent(bench: Bench, seconds: float) -> float:
    """Return the worker's share of one core while the bus is quiet, reader, lease and timers included."""
    time.sleep(SETTLE_S)
    before, started = _cpu_s(bench.worker), time.monotonic()
    time.sleep(seconds)
    return 100 * (_cpu_s(bench.worker) - before) / (time.monotonic() - started)


def _cpu_s(worker: WorkerProcess) -> float:
    """Return the CPU seconds that the process has used (proc(5): fields 14 and 15 of its stat)."""
    after_name = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _host_nodes(blueprint: Blueprint) -> int:
    graph = blueprint.graph
    if graph is None or graph.activations is None or graph.parameters is None:
        return 0
    return len(graph.layers.layer_id) + len(graph.activations.activation_id) + len(graph.parameters.parameter_id)


def _percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    return {name: float(np.percentile(milliseconds, share)) for name, share in (("p50", 50), ("p95", 95))}
