"""Renders docs/performance.md from the figures of ``bench model``: nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Results = Sequence[Mapping[str, float | int | str]]


@dataclass(frozen=True, slots=True)
class Topic:
    """One table: a row per measurement, a column per figure.

    ``columns``: heading -> figure and its format; a measurement that has none of them is left out.
    """

    title: str
    text: str
    columns: Mapping[str, tuple[str, str]]


TOPICS: tuple[Topic, ...] = (
    Topic(
        "Plan against reference",
        "The reference is the network as it is trained, in float32, on the same threads. The ratio is the median "
        "over pairs timed in turns in one process, with its 95 % bootstrap interval; the times are of one "
        "`infer`, collation included, and depend on who else uses the machine.",
        {
            "nodes": ("graph.nodes", ",.0f"),
            "edges": ("graph.edges", ",.0f"),
            "reference p50 ms": ("reference.p50_ms", ".1f"),
            "plan p50 ms": ("plan.p50_ms", ".2f"),
            "plan p95 ms": ("plan.p95_ms", ".2f"),
            "CPU ms": ("plan.cpu_ms", ".1f"),
            "ratio": ("reference_over_plan.median", ".1f"),
            "from": ("reference_over_plan.low", ".1f"),
            "to": ("reference_over_plan.high", ".1f"),
            "largest error": ("error.max", ".1e"),
        },
    ),
    Topic(
        "Distance to the machine's limit",
        "The floor is what the plan's operations take at the measured rate of the products, plus what its bytes "
        "take at the measured copy rate, nothing overlapping. Plan and limits are measured in turns; the ratio is "
        "the median over the turns.",
        {
            "products": ("products", ""),
            "GFLOP": ("plan.gflop", ".2f"),
            "GB moved": ("plan.moved_gb", ".3f"),
            "GFLOP/s": ("roofline.gemm_gflops", ".0f"),
            "GB/s": ("roofline.copy_gb_s", ".1f"),
            "floor ms": ("roofline.floor_ms", ".2f"),
            "plan / floor": ("plan_over_floor.median", ".2f"),
            "from": ("plan_over_floor.low", ".2f"),
            "to": ("plan_over_floor.high", ".2f"),
        },
    ),
    Topic(
        "Where the time goes",
        "Shares of CPU time by kind of operation, from profiled passes of their own.",
        {
            "products": ("share.products", ".0%"),
            "bags": ("share.bags", ".0%"),
            "LayerNorm": ("share.layer_norm", ".0%"),
            "activation": ("share.activation", ".0%"),
            "gather, scatter": ("share.gather_scatter", ".0%"),
            "softmax": ("share.softmax", ".0%"),
            "copies": ("share.copies", ".0%"),
            "other": ("share.other", ".0%"),
        },
    ),
    Topic(
        "Beside other work",
        "A busy core: the plan while another process computes on one of the cores. Loop lag: how late the event "
        "loop runs a timer of one millisecond while forwards run on the stage's thread.",
        {
            "p50 ms, busy core": ("stolen_core.p50_ms", ".2f"),
            "p95 ms, busy core": ("stolen_core.p95_ms", ".2f"),
            "p95 busy / p50 idle": ("stolen_core.p95_over_idle_p50", ".2f"),
            "loop lag p99 ms, idle": ("loop_lag.idle_p99_ms", ".2f"),
            "loop lag p99 ms": ("loop_lag.p99_ms", ".2f"),
        },
    ),
    Topic(
        "Micro-batches",
        "The same graphs in one forward and one after the other; the ratio as above.",
        {
            "one by one, graphs/s": ("batching.one_by_one_graphs_per_s", ".1f"),
            "together, graphs/s": ("batching.batched_graphs_per_s", ".1f"),
            "ratio": ("one_by_one_over_batched.median", ".2f"),
            "from": ("one_by_one_over_batched.low", ".2f"),
            "to": ("one_by_one_over_batched.high", ".2f"),
        },
    ),
    Topic(
        "Memory and plans",
        "Peak resident memory of a process of its own that evaluates one graph, libraries and weights included. "
        "Building a plan happens once per structure, off the step path.",
        {
            "reference MB": ("reference.peak_rss_mb", ",.0f"),
            "plan MB": ("plan.peak_rss_mb", ",.0f"),
            "plan built in ms": ("plan_build.p50_ms", ".1f"),
        },
    ),
    Topic(
        "CUDA",
        "Against the network run eagerly in float32 on the same device. Device time includes the copies.",
        {
            "recorded p50 ms": ("cuda.graphs.p50_ms", ".2f"),
            "recorded p95 ms": ("cuda.graphs.p95_ms", ".2f"),
            "device ms": ("cuda.graphs.device_ms", ".2f"),
            "kernels": ("cuda.graphs.kernels", ",.0f"),
            "peak MB": ("cuda.graphs.peak_mb", ",.0f"),
            "eager / recorded": ("cuda.eager_over_graphs.median", ".1f"),
            "compiled p50 ms": ("cuda.compiled.p50_ms", ".2f"),
            "eager / compiled": ("cuda.eager_over_compiled.median", ".1f"),
        },
    ),
)

_HEAD = """# Performance

Written by `tamiyo-stream bench page` from the results of `tamiyo-stream bench model --json`; no figure is typed by
hand. Absolute times hold for the machine named below, ratios for machines like it.

"""
_MACHINE: Mapping[str, str] = {
    "CPU": "machine.cpu",
    "cores": "machine.cores",
    "instruction sets": "machine.flags",
    "GPU": "machine.gpu",
    "torch": "machine.torch",
    "Python": "machine.python",
    "load at the start": "machine.load",
    "`OMP_WAIT_POLICY`": "machine.omp_wait_policy",
}


def performance_page(results: Results) -> str:
    """Return the page, a table per topic, the command beside each figure.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("results is empty; run `tamiyo-stream bench model --json FILE` first")
    sections = [_table(topic, results) for topic in TOPICS]
    return _HEAD + _machines(results) + "\n" + "\n".join(section for section in sections if section)


def _machines(results: Results) -> str:
    rows = [f"| {name} | {_distinct(results, figure)} |" for name, figure in _MACHINE.items()]
    return "| machine | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _distinct(results: Results, figure: str) -> str:
    return ", ".join(dict.fromkeys(str(result[figure]) for result in results if figure in result))


def _table(topic: Topic, results: Results) -> str:
    rows = [
        [*(_cell(result, figure, style) for figure, style in topic.columns.values()), _command(result)]
        for result in results
        if any(figure in result for figure, _ in topic.columns.values())
    ]
    if not rows:
        return ""
    head = [*topic.columns, "command"]
    lines = [head, ["---:"] * (len(head) - 1) + ["---"], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {topic.title}\n\n{topic.text}\n\n{table}\n"


def _cell(result: Mapping[str, float | int | str], figure: str, style: str) -> str:
    value = result.get(figure, "")
    return value if isinstance(value, str) else format(value, style)


def _command(result: Mapping[str, float | int | str]) -> str:
    return f"`tamiyo-stream bench model {result['options']}`"
