"""What else goes on: a busy neighbour on one core, and the event loop beside a forward."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio

from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.stage import InferenceStage

#: The ticker's interval; its lag is how much later than that it runs.
TICK_S = 0.001
#: How long the loop is watched without a forward.
IDLE_S = 0.5


@contextmanager
def stolen_core() -> Iterator[None]:
    """Keep one core busy with a process that does nothing else."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)  # until it computes
        yield
    finally:
        process.kill()
        process.wait()


def loop_lag(engine: InferenceEngine, graph: StepGraph, passes: int) -> tuple[list[float], list[float]]:
    """Return how late, in milliseconds, an event loop ran its timers: idle, and during ``passes`` forwards."""
    return anyio.run(_loop_lag, engine, graph, passes)


async def _loop_lag(engine: InferenceEngine, graph: StepGraph, passes: int) -> tuple[list[float], list[float]]:
    stage = InferenceStage(engine)
    lags: list[float] = []
    async with anyio.create_task_group() as group:
        await group.start(stage.run)
        await stage.submit(graph)
        group.start_soon(_tick, lags)
        await anyio.sleep(IDLE_S)
        idle = len(lags)
        for _ in range(passes):
            await stage.submit(graph)
        group.cancel_scope.cancel()
    return lags[:idle], lags[idle:]


async def _tick(lags: list[float]) -> None:
    while True:
        due = time.perf_counter() + TICK_S
        await anyio.sleep(TICK_S)
        lags.append((time.perf_counter() - due) * 1000)


def one_by_one(engine: InferenceEngine, graphs: Sequence[StepGraph]) -> None:
    """Evaluate ``graphs`` in a forward each."""
    for graph in graphs:
        engine.infer([graph])
