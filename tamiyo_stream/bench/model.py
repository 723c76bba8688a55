"""What the network costs: the plan against the reference, against the machine's limits, and beside other work.

Figures are flat, ``topic.figure``; times are milliseconds of :meth:`InferenceEngine.infer`, collation included.
Ratios are taken over pairs timed in turns in this process, so that they hold on a machine that others use too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tamiyo_stream.bench.cuda import cuda_figures
from tamiyo_stream.bench.graphs import step_graphs
from tamiyo_stream.bench.interference import loop_lag, one_by_one, stolen_core
from tamiyo_stream.bench.machine import machine
from tamiyo_stream.bench.pairs import percentiles, ratio_of, time_once, time_pairs
from tamiyo_stream.bench.resident import Executor, peak_rss_mb
from tamiyo_stream.bench.roofline import RooflineProbe
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.cost import count_bytes, count_flops
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.products import Precision
from tamiyo_stream.inference.self_test import choose_products
from tamiyo_stream.inference.topology_plan import plan_of
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.network import build_network

Figures = dict[str, float | int | str]

#: Pairs of reference and plan: the reference is slow, and its ratio settles early.
MAX_PAIRS = 30
_WARM_UPS = 3
#: Operations by what they do, as torch's profiler names them; the rest is ``other``.
_KINDS: dict[str, tuple[str, ...]] = {
    "products": ("mkldnn", "addmm", "aten::mm", "aten::matmul", "aten::linear", "aten::bmm"),
    "bags": ("embedding_bag",),
    "layer_norm": ("layer_norm",),
    "activation": ("gelu", "relu"),
    "gather_scatter": ("index", "gather", "scatter", "aten::cat"),
    "softmax": ("exp", "softmax", "segment", "amax"),
    "copies": ("copy_", "aten::to", "contiguous", "clone"),
}


def model_figures(
    nodes: int = 10_000,
    edges: int = 50_000,
    *,
    threads: int = 1,
    precision: Precision = "fp32",
    batch: int = 1,
    passes: int = 200,
    seed: int = 0,
) -> Figures:
    """Measure the network on synthetic runs and return the figures.

    Args:
        nodes: nodes of a graph, of all types.
        edges: edges of a graph, reverses included; what was built stands in ``graph.edges``.
        threads: CPU threads of an operation, for reference and plan alike.
        precision: of the plan; the reference is always float32.
        batch: graphs per micro-batch; with more than one, batching is compared with one by one.
        passes: timed forwards of the plan; at most ``MAX_PAIRS`` of them are paired with the reference.
        seed: of graphs and weights.
    """
    torch.set_num_threads(threads)
    graphs = step_graphs(nodes, edges, batch, seed)
    reference = _engine("reference", "fp32", threads, seed)
    plan = _engine("plan", precision, threads, seed)
    figures: Figures = {
        "options": f"--nodes {nodes} --edges {edges} --threads {threads} --precision {precision} --batch {batch}",
        **machine(),
        "graph.nodes": graphs[0].topology.num_nodes,
        "graph.edges": graphs[0].topology.num_edges,
        **_plan_building(graphs[0]),
        **_against_reference(reference, plan, graphs[:1], passes),
        **_roofline(plan, graphs[:1], precision, threads, passes),
    }
    figures |= _shares(plan, graphs[:1])
    idle, busy = loop_lag(plan, graphs[0], min(passes, 50))
    figures |= {
        "loop_lag.idle_p99_ms": float(np.percentile(idle, 99)),
        "loop_lag.p99_ms": float(np.percentile(busy, 99)),
        "loop_lag.ticks": len(busy),
    }
    figures |= _beside_a_busy_core(plan, graphs[:1], passes, float(figures["plan.p50_ms"]))
    if batch > 1:
        figures |= _batching(plan, graphs, passes)
    figures["reference.peak_rss_mb"] = peak_rss_mb(nodes, edges, threads, "reference", "fp32")
    figures["plan.peak_rss_mb"] = peak_rss_mb(nodes, edges, threads, "plan", precision)
    return figures | cuda_figures(graphs[:1], passes, seed)


def _engine(executor: Executor, precision: Precision, threads: int, seed: int) -> InferenceEngine:
    return InferenceEngine(
        build_network(seed=seed),
        policy_version="bench",
        policy_digest="bench",
        threads=threads,
        executor=executor,
        precision=precision,
    )


def _plan_building(graph: StepGraph) -> Figures:
    times = [time_once(partial(plan_of, [graph.topology], heads=_heads())) for _ in range(5)]
    return {"plan_build.p50_ms": float(np.median(times))}


def _against_reference(
    reference: InferenceEngine, plan: InferenceEngine, graphs: Sequence[StepGraph], passes: int
) -> Figures:
    for _ in range(_WARM_UPS):
        expected, found = reference.infer(graphs), plan.infer(graphs)
    slow, fast = time_pairs(lambda: reference.infer(graphs), lambda: plan.infer(graphs), min(passes, MAX_PAIRS))
    cpu_before = time.process_time()
    times = [time_once(lambda: plan.infer(graphs)) for _ in range(passes)]
    cpu_ms = (time.process_time() - cpu_before) * 1000 / passes
    return {
        **percentiles("reference", slow),
        **percentiles("plan", times),
        "plan.cpu_ms": cpu_ms,
        "plan.passes": passes,
        **ratio_of(slow, fast).figures("reference_over_plan"),
        **_errors(expected[0], found[0]),
    }


def _errors(expected: NetworkOutput | NonFiniteOutput, found: NetworkOutput | NonFiniteOutput) -> Figures:
    """Return the largest deviation of each head, relative to its largest value."""
    if isinstance(expected, NonFiniteOutput) or isinstance(found, NonFiniteOutput):
        raise ArithmeticError("a benchmark's network answered no numbers; its weights or graphs are broken")
    errors: Figures = {}
    for name in _HEADS:
        ours, theirs = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        scale = max(float(np.abs(theirs).max(initial=0.0)), 0.05)  # a head near zero by its usual size
        errors[f"error.{name}"] = float(np.abs(ours - theirs).max(initial=0.0)) / scale
    return {"error.max": max(float(error) for error in errors.values()), **errors}


_HEADS = (
    "policy_logits",
    "policy_params",
    "risk_logits",
    "value_estimate",
    "blending_method_logits",
    "telemetry_embedding",
    "graph_embedding",
    "seed_scores",
    "seed_schedule",
    "blueprint_scores",
    "layer_attention",
    "seed_attention",
)


def _roofline(
    plan: InferenceEngine, graphs: Sequence[StepGraph], precision: Precision, threads: int, passes: int
) -> Figures:
    """Return the limits and the plan's distance from them, both measured in turns."""
    products = choose_products(precision, threads)
    batch, its_plan = collate(graphs), plan_of([graph.topology for graph in graphs], heads=_heads())
    flops, moved = count_flops(its_plan, batch), count_bytes(its_plan, batch, precision)
    probe, limits = RooflineProbe(products), []
    probe.measure()
    times = []
    for _ in range(min(passes, MAX_PAIRS)):
        limits.append(probe.measure())
        times.append(time_once(lambda: plan.infer(graphs)))
    floors = np.array([limit.floor_ms(flops, moved) for limit in limits])
    return {
        "products": products.name,
        "plan.gflop": flops / 1e9,
        "plan.moved_gb": moved / 1e9,
        "roofline.gemm_gflops": float(np.median([limit.gemm_gflops for limit in limits])),
        "roofline.copy_gb_s": float(np.median([limit.copy_gb_s for limit in limits])),
        "roofline.floor_ms": float(np.median(floors)),
        **ratio_of(np.array(times), floors).figures("plan_over_floor"),
    }


def _heads() -> int:
    return TamiyoGNNConfig().attention_heads


def _shares(plan: InferenceEngine, graphs: Sequence[StepGraph]) -> Figures:
    """Return the share of the forward's CPU time by kind of operation, from a profiled pass of its own."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            plan.infer(graphs)
    spent = dict.fromkeys((*_KINDS, "other"), 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, marks in _KINDS.items() if any(mark in event.key for mark in marks)), "other")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {f"share.{kind}": value / total for kind, value in spent.items()}


def _beside_a_busy_core(
    plan: InferenceEngine, graphs: Sequence[StepGraph], passes: int, idle_p50_ms: float
) -> Figures:
    with stolen_core():
        times = [time_once(lambda: plan.infer(graphs)) for _ in range(min(passes, 100))]
    figures: Figures = {**percentiles("stolen_core", times)}
    figures["stolen_core.p95_over_idle_p50"] = float(figures["stolen_core.p95_ms"]) / idle_p50_ms
    return figures


def _batching(plan: InferenceEngine, graphs: Sequence[StepGraph], passes: int) -> Figures:
    plan.infer(graphs)
    plan.prepare_combinations()
    plan.infer(graphs)
    one_by_one(plan, graphs)
    alone, together = time_pairs(
        lambda: one_by_one(plan, graphs), lambda: plan.infer(graphs), min(passes, MAX_PAIRS)
    )
    return {
        "batching.one_by_one_graphs_per_s": len(graphs) / float(np.median(alone)) * 1000,
        "batching.batched_graphs_per_s": len(graphs) / float(np.median(together)) * 1000,
        **ratio_of(alone, together).figures("one_by_one_over_batched"),
    }
