"""Peak memory of a process that only evaluates one graph (``python -m tamiyo_stream.bench.resident``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from tamiyo_stream.bench.graphs import step_graphs
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.products import Precision
from tamiyo_stream.model.network import build_network

Executor = Literal["plan", "reference"]

_FORWARDS = 3


def peak_rss_mb(nodes: int, edges: int, threads: int, executor: Executor, precision: Precision) -> float:
    """Return the peak resident megabytes of a new process that evaluates one graph, libraries included.

    Raises:
        subprocess.CalledProcessError: the process failed; its errors went to stderr.
    """
    arguments = [str(value) for value in (nodes, edges, threads, executor, precision)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, check=True
    )
    return float(done.stdout)


def evaluate(nodes: int, edges: int, threads: int, executor: Executor, precision: Precision) -> float:
    """Evaluate one graph in this process and return its peak resident megabytes."""
    engine = InferenceEngine(
        build_network(),
        policy_version="bench",
        policy_digest="bench",
        threads=threads,
        executor=executor,
        precision=precision,
    )
    for _ in range(_FORWARDS):
        engine.infer(step_graphs(nodes, edges, 1))
    return _high_water_mb()


def _high_water_mb() -> float:
    """Return this process's peak; ``ru_maxrss`` would count what the parent held when it started us."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM; measure on Linux")


def main(arguments: list[str]) -> None:
    """Print the figure for nodes, edges, threads, executor and precision."""
    nodes, edges, threads = map(int, arguments[:3])
    executor: Executor = "reference" if arguments[3] == "reference" else "plan"
    precision: Precision = "bf16" if arguments[4] == "bf16" else "fp32"
    sys.stdout.write(f"{evaluate(nodes, edges, threads, executor, precision)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
