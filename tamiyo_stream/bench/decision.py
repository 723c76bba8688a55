"""What the decision stage costs: everything between the network's answer and the entries that are committed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from schemas.entry import encode_entry
from schemas.record import Message
from schemas.signing import Keyring
from tamiyo_stream.bench.synthetic_run import synthetic_run, synthetic_tables
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.manifest import manifest_digest
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.output import NetworkOutput
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.facts import Guard, Stamp, StepFacts
from tamiyo_stream.policy.settlement import settle
from tamiyo_stream.policy.signature import sign_command
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables

#: As in the reference catalogue.
KERNELS = 21


def decision_figures(nodes: int = 10_000, edges: int = 50_000, passes: int = 300) -> dict[str, Any]:
    """Time deciding, settling and signing for one run; p50 and p95 in ms, by the wall clock and this thread's."""
    blueprint, packet, seeds = synthetic_run(nodes, edges)
    tables = synthetic_tables(blueprint, KERNELS)
    run = RunState(run_id=packet.run_id, seeds={seed.seed_id: seed for seed in seeds})
    graph = GraphBuilder(Registries()).build(run, packet, tables)
    facts = _facts(run, graph, tables, packet)
    keyring = Keyring({"k1": b"a secret of the benchmark"})
    stages: dict[str, list[tuple[float, float]]] = {"decide": [], "settle": [], "sign_and_encode": [], "all": []}
    for number in range(passes):
        stamp = _stamp(number)
        marks = [_now()]
        decision = decide(facts, _answer(graph, number), stamp, guard=Guard.of(run))
        marks.append(_now())
        settled = settle(run, decision, facts, stamp)
        marks.append(_now())
        messages: list[Message] = [sign_command(decision.command, keyring), *settled.reports]
        for message in messages:
            encode_entry(message, keyring)
        marks.append(_now())
        for name, begin, end in (("decide", 0, 1), ("settle", 1, 2), ("sign_and_encode", 2, 3), ("all", 0, 3)):
            stages[name].append((marks[end][0] - marks[begin][0], marks[end][1] - marks[begin][1]))
    figures: dict[str, Any] = {"nodes": nodes, "seeds": len(seeds), "kernels": KERNELS, "passes": passes}
    for name, times in stages.items():
        wall, cpu = (np.asarray(column) * 1000 for column in zip(*times, strict=True))
        figures |= {
            f"{name}_p50_ms": float(np.percentile(wall, 50)),
            f"{name}_p95_ms": float(np.percentile(wall, 95)),
        }
        figures[f"{name}_cpu_p95_ms"] = float(np.percentile(cpu, 95))
    return figures


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _facts(run: RunState, graph: StepGraph, tables: Tables, packet: Any) -> StepFacts:
    return StepFacts(
        packet=packet,
        seeds=[run.seeds[seed_id] for seed_id in graph.seed_ids],
        kernels=[tables.kernels[kernel_id] for kernel_id in graph.kernel_ids],
        layer_ids=graph.layer_ids,
        sheets=tables.sheets,
        optimizer_families=["adamw"],
        coverage_average=graph.coverage.average,
        coverage_keys=graph.coverage.keys,
        coverage_types=graph.coverage.types,
        loss_delta=0.01,
        feature_manifest=manifest_digest(),
    )


def _stamp(number: int) -> Stamp:
    return Stamp(
        command_id=f"command-{number}",
        issued_at=time.time_ns(),
        execution_deadline_ms=60_000,
        lr_change_max=0.1,
        policy_version="bench",
        elapsed_ms=10.0,
        budget_ms=45.0,
    )


def _answer(graph: StepGraph, seed: int) -> NetworkOutput:
    """Return random heads of the network's shapes: every pass chooses among other actions."""
    draw = np.random.default_rng(seed)

    def head(*shape: int) -> Any:
        return draw.standard_normal(shape).astype(np.float32)

    seeds, layers = len(graph.seed_ids), len(graph.layer_ids)
    return NetworkOutput(
        policy_logits=head(32),
        policy_params=np.tanh(head(32, 4)),
        risk_logits=head(5),
        value_estimate=0.1,
        blending_method_logits=head(4),
        telemetry_embedding=head(64),
        graph_embedding=head(128),
        seed_scores=head(seeds),
        seed_schedule=np.tanh(head(seeds, 2)),
        blueprint_scores=head(len(graph.kernel_ids)),
        layer_attention=np.abs(head(layers)),
        seed_attention=np.abs(head(seeds)),
        policy_version="bench",
        policy_digest="bench",
        latency_ms=10.0,
        batch_size=1,
    )
