"""What the graph stage costs: building steps and topologies, the packets they come in, and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from schemas.catalogue import MESSAGES
from schemas.codec import decode_payload, encode_payload
from tamiyo_stream.bench.synthetic_run import synthetic_packet, synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.graph.topology import build_topology
from tamiyo_stream.runs.norms import observe
from tamiyo_stream.runs.state import RunState

#: Nodes and forward edges of a small run, and of one so large that its in-degrees are capped.
SMALL = (200, 1_000)
LARGE = (100_000, 1_000_000)
#: Small runs at the same time.
RUNS = 100
_PACKETS = 5
_STATM = Path("/proc/self/statm")


def graph_figures(
    nodes: int = 10_000,
    edges: int = 50_000,
    passes: int = 300,
    *,
    large: tuple[int, int] = LARGE,
    runs: int = RUNS,
) -> dict[str, Any]:
    """Measure the graph stage; times in ms, by the wall clock and (``cpu``) of this thread; sizes as named.

    Args:
        nodes: of the run that is measured in full.
        edges: of its forward relations.
        passes: timed repetitions of each build; what takes long is repeated a few times only.
        large: nodes and edges of the topology that is above the limits.
        runs: small runs at the same time.
    """
    figures: dict[str, Any] = {"nodes": nodes, "edges": edges, "passes": passes}
    figures |= _runs_figures(runs)
    figures |= _packet_figures(nodes, edges, passes)
    for name, size in (("small", SMALL), ("run", (nodes, edges))):
        figures |= _build_figures(name, size, passes)
    few = max(min(passes // 20, 20), 1)
    figures |= _topology_figures("topology", (nodes, edges), few)
    figures |= _topology_figures("sampled_topology", large, max(few // 5, 1))
    return figures


def _build_figures(name: str, size: tuple[int, int], passes: int) -> dict[str, Any]:
    """Steps of one run whose topology is cached, its statistics moving."""
    blueprint, packet, seeds = synthetic_run(*size)
    tables = synthetic_tables(blueprint)
    run = RunState(run_id=packet.run_id, seeds={seed.seed_id: seed for seed in seeds})
    builder = GraphBuilder(Registries())
    packets = [synthetic_packet(blueprint, step=step, seed=step) for step in range(_PACKETS)]
    for each in packets:
        builder.build(run, each, tables)
    build, samples = _Times(), _Times()
    for step in range(passes):
        each = packets[step % _PACKETS]
        with build:
            builder.build(run, each, tables)
        with samples:
            measured = builder.samples(run, each)
        observe(run.norms, measured)
    return {**build.quantiles(f"{name}_build"), **samples.quantiles(f"{name}_samples")}


def _topology_figures(name: str, size: tuple[int, int], passes: int) -> dict[str, Any]:
    blueprint, _, seeds = synthetic_run(*size)
    kernels = tuple(synthetic_tables(blueprint).kernels.values())
    built = build_topology(blueprint, seeds, kernels)
    times = _Times()
    for _ in range(passes):
        with times:
            build_topology(blueprint, seeds, kernels)
    return {
        **times.quantiles(name),
        f"{name}_nodes": built.topology.num_nodes,
        f"{name}_edges_both_ways": built.topology.num_edges,
        f"{name}_sampled_edges": built.sampled_edges,
    }


def _packet_figures(nodes: int, edges: int, passes: int) -> dict[str, Any]:
    _, packet, _ = synthetic_run(nodes, edges)
    payload = encode_payload(packet)
    spec = MESSAGES["SystemStatePacket"]
    times = _Times()
    for _ in range(passes):
        with times:
            decode_payload(spec, payload)
    return {"packet_bytes": len(payload), **times.quantiles("packet_decode")}


def _runs_figures(runs: int) -> dict[str, Any]:
    """Small runs in turn, one graph of each held: memory, and whether their structures stay cached."""
    blueprint, packet, seeds = synthetic_run(*SMALL)
    tables = synthetic_tables(blueprint)
    builder = GraphBuilder(Registries())
    states = [
        RunState(run_id=f"run-{index}", seeds={seed.seed_id: seed for seed in seeds}) for index in range(runs)
    ]
    before = _resident_mib()
    held: list[StepGraph] = [builder.build(state, packet, tables) for state in states]
    started = time.perf_counter()
    again = [builder.build(state, packet, tables) for state in states]
    elapsed_ms = (time.perf_counter() - started) * 1000
    kept = sum(new.topology is old.topology for new, old in zip(again, held, strict=True))
    after = _resident_mib()
    return {
        "runs": runs,
        "runs_kept": kept,
        "runs_build_mean_ms": elapsed_ms / runs,
        "runs_resident_mib": None if before is None or after is None else after - before,
    }


class _Times:
    """Times of what runs inside ``with``, in ms: by the wall clock, and of this thread."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._wall.append((time.perf_counter() - self._started[0]) * 1000)
        self._cpu.append((time.thread_time() - self._started[1]) * 1000)

    def quantiles(self, name: str) -> dict[str, float]:
        return {
            f"{name}_{clock}{label}_ms": float(np.percentile(times, share))
            for clock, times in (("", self._wall), ("cpu_", self._cpu))
            for label, share in (("p50", 50), ("p95", 95))
        }


def _resident_mib() -> float | None:
    """Resident memory of this process; None where the system does not tell."""
    if not _STATM.exists():
        return None
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
