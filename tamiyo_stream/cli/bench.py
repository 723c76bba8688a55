"""``tamiyo-stream bench``: measure. Every figure in docs/performance.md comes from here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tamiyo_stream.cli.shell import JsonOption, fail, write_text


class Precision(StrEnum):
    """Number format of the execution plan."""

    FP32 = "fp32"
    BF16 = "bf16"


app = typer.Typer(help="Measure: every figure in docs/performance.md comes from here.", no_args_is_help=True)


@app.command("probe")
def probe(
    steps: Annotated[int, typer.Option(min=20, help="Training steps with and without the probe, each.")] = 200,
    json: JsonOption = None,
) -> None:
    """Measure what the Tolaria probe costs a training step."""
    from tamiyo_stream.bench.probe import probe_overhead  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(probe_overhead(steps), json)


@app.command("graph")
def graph(
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the large graph.")] = 10_000,
    edges: Annotated[int, typer.Option(min=10, help="Edges of the large graph, reverses not counted.")] = 50_000,
    passes: Annotated[int, typer.Option(min=10, help="Steps that are timed.")] = 300,
    json: JsonOption = None,
) -> None:
    """Measure what a step's graph costs, its topology, its packet, and a hundred small runs in memory."""
    from tamiyo_stream.bench.graph import graph_figures  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(graph_figures(nodes, edges, passes), json)


@app.command("decision")
def decision(
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the run.")] = 10_000,
    passes: Annotated[int, typer.Option(min=10, help="Decisions that are timed.")] = 300,
    json: JsonOption = None,
) -> None:
    """Measure what a decision costs after the network has answered."""
    from tamiyo_stream.bench.decision import decision_figures  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(decision_figures(nodes, 5 * nodes, passes), json)


@app.command("pipeline")
def pipeline(
    nodes: Annotated[int, typer.Option(min=60, help="Nodes of the run.")] = 200,
    steps: Annotated[int, typer.Option(min=10, help="States whose way to the command is timed.")] = 300,
    messages: Annotated[int, typer.Option(min=100, help="Small messages.")] = 20_000,
    idle_s: Annotated[float, typer.Option(min=0.1, help="Seconds of an idle bus.")] = 10.0,
    json: JsonOption = None,
) -> None:
    """Measure the whole in-path: a worker process on an embedded Redis, from a state's XADD to its command."""
    from tamiyo_stream.bench.pipeline import pipeline_figures  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(pipeline_figures(nodes, steps, messages, idle_s), json)


@app.command()
def model(
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the run.")] = 10_000,
    edges: Annotated[int, typer.Option(min=10, help="Edges, reverses included.")] = 50_000,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    precision: Annotated[
        Precision, typer.Option(help="Of the plan; the reference is always fp32.")
    ] = Precision.FP32,
    batch: Annotated[int, typer.Option(min=1, help="Graphs in a batch.")] = 1,
    passes: Annotated[int, typer.Option(min=2, help="Timed forwards of each kind.")] = 200,
    json: JsonOption = None,
) -> None:
    """Time the plain network and the execution plan in turns, and the distance to the machine's limit."""
    from tamiyo_stream.bench.model import model_figures  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    figures = model_figures(nodes, edges, threads=threads, precision=precision.value, batch=batch, passes=passes)
    print_report(figures, json)


@app.command()
def page(
    out: Annotated[Path, typer.Option(help="File to write; - = stdout.")] = Path("docs/performance.md"),
) -> None:
    """Run every benchmark and write the page that shows them; takes about a quarter of an hour, undisturbed."""
    from tamiyo_stream.bench.page import BenchmarkFailed, measure_all  # noqa: PLC0415

    try:
        write_text(out, measure_all(lambda text: typer.echo(text, err=True)))
    except BenchmarkFailed as error:
        fail(str(error))
