"""The commands of ``tamiyo-stream`` (design §14).

Every command imports what it needs when it runs: ``--help`` must not load torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tamiyo_stream.demo.options import DemoOptions, Service

if TYPE_CHECKING:
    from tamiyo_stream.settings import Settings

app = typer.Typer(
    name="tamiyo-stream",
    help="Strategic controller for training runs that grow neural networks: reads their state from Redis Streams, "
    "answers every step with a signed, explained decision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
schema_app = typer.Typer(help="The wire contracts.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")
config_app = typer.Typer(help="The worker's settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
dlq_app = typer.Typer(help="The dead letter: entries that could not be used.", no_args_is_help=True)
app.add_typer(dlq_app, name="dlq")
bench_app = typer.Typer(help="Measure: every figure in docs/performance.md comes from here.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON to FILE (- = stdout).", metavar="FILE")
]


@app.command()
def run() -> None:
    """Run the worker against the Redis of TAMIYO_REDIS_URL until SIGTERM."""
    settings = _settings()
    from tamiyo_stream.worker.service import StartFailed, run_worker  # noqa: PLC0415

    try:
        run_worker(settings)
    except StartFailed as error:
        fail(str(error))


@app.command()
def check() -> None:
    """Check that everything the worker needs is there; say what to do where it is not."""
    from tamiyo_stream.check import run_checks  # noqa: PLC0415

    raise typer.Exit(run_checks(_settings()))


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 150,
    headless: Annotated[bool, typer.Option("--headless", help="Plain lines instead of the live view.")] = False,
    json: JsonOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of model, data order and Tamiyo's network.")] = 5,
    without: Annotated[
        list[Service] | None, typer.Option(help="Leave a service out; may be given several times.")
    ] = None,
) -> None:
    """Train a real model under Tamiyo's control over an embedded Redis. Needs nothing else."""
    from tamiyo_stream.demo.command import run_demo  # noqa: PLC0415

    options = DemoOptions(
        steps=steps, headless=headless, json_file=json, seed=seed, without=frozenset(without or ())
    )
    raise typer.Exit(run_demo(options))


LetterIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, as `dlq ls` shows them.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter.")]
ReasonOption = Annotated[str | None, typer.Option(help="Letters with this reason.", metavar="REASON")]


@dlq_app.command("ls")
def dlq_ls(reason: ReasonOption = None, json: JsonOption = None) -> None:
    """List the refused entries, oldest first."""
    from tamiyo_stream.dead_letters import list_letters  # noqa: PLC0415

    _dlq(lambda settings: list_letters(settings, reason, json))


@dlq_app.command("show")
def dlq_show(letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dlq ls` shows it.")]) -> None:
    """Show one refused entry, and what a reader makes of it now."""
    from tamiyo_stream.dead_letters import show_letter  # noqa: PLC0415

    _dlq(lambda settings: show_letter(settings, letter_id))


@dlq_app.command("replay")
def dlq_replay(ids: LetterIds = None, every: AllOption = False, reason: ReasonOption = None) -> None:
    """Give refused entries back to the streams they came from."""
    from tamiyo_stream.dead_letters import Chosen, replay_letters  # noqa: PLC0415

    _dlq(lambda settings: replay_letters(settings, Chosen(tuple(ids or ()), every, reason)))


@dlq_app.command("purge")
def dlq_purge(ids: LetterIds = None, every: AllOption = False, reason: ReasonOption = None) -> None:
    """Delete refused entries for good."""
    from tamiyo_stream.dead_letters import Chosen, purge_letters  # noqa: PLC0415

    _dlq(lambda settings: purge_letters(settings, Chosen(tuple(ids or ()), every, reason)))


@bench_app.command("probe")
def bench_probe(
    steps: Annotated[int, typer.Option(min=20, help="Training steps with and without the probe, each.")] = 200,
    json: JsonOption = None,
) -> None:
    """Measure what the Tolaria probe costs a training step."""
    from tamiyo_stream.bench.probe import probe_overhead  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(probe_overhead(steps), json)


@bench_app.command("graph")
def bench_graph(
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the large graph.")] = 10_000,
    edges: Annotated[int, typer.Option(min=10, help="Edges of the large graph, reverses not counted.")] = 50_000,
    passes: Annotated[int, typer.Option(min=10, help="Steps that are timed.")] = 300,
    json: JsonOption = None,
) -> None:
    """Measure what a step's graph costs, its topology, its packet, and a hundred small runs in memory."""
    from tamiyo_stream.bench.graph import graph_figures  # noqa: PLC0415
    from tamiyo_stream.bench.report import print_report  # noqa: PLC0415

    print_report(graph_figures(nodes, edges, passes), json)


@schema_app.command("export")
def schema_export(
    out: Annotated[Path, typer.Option(help="File to write; - = stdout.")] = Path("docs/asyncapi.yaml"),
) -> None:
    """Write the wire contracts as AsyncAPI 3."""
    from schemas.asyncapi import render_asyncapi  # noqa: PLC0415

    write_text(out, render_asyncapi())


@schema_app.command("features")
def schema_features(
    out: Annotated[Path, typer.Option(help="Directory to write features.md and relations.md to.")] = Path(
        "docs/reference"
    ),
) -> None:
    """Write the pages that list every feature and every relation of the graph."""
    from tamiyo_stream.graph.reference import render_features, render_relations  # noqa: PLC0415

    write_text(out / "features.md", render_features())
    write_text(out / "relations.md", render_relations())


@config_app.command("show")
def config_show() -> None:
    """Print the effective configuration, secrets left out."""
    import json  # noqa: PLC0415

    typer.echo(json.dumps(_settings().redacted(), indent=2))


@config_app.command("reference")
def config_reference(
    out: Annotated[Path, typer.Option(help="File to write; - = stdout.")] = Path(
        "docs/reference/configuration.md"
    ),
) -> None:
    """Write the page that lists every setting."""
    from tamiyo_stream.settings import render_reference  # noqa: PLC0415

    write_text(out, render_reference())


def _dlq(command: Callable[[Settings], int]) -> None:
    import redis  # noqa: PLC0415

    from tamiyo_stream.dead_letters import LetterNotFound, LetterUnusable, NothingChosen  # noqa: PLC0415

    try:
        status = command(_settings())
    except (LetterNotFound, LetterUnusable, NothingChosen, redis.RedisError, OSError) as error:
        fail(str(error))
    raise typer.Exit(status)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, or to stdout for ``-``."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _settings() -> Settings:
    from tamiyo_stream.settings import SettingsError, load_settings  # noqa: PLC0415

    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Print ``message`` to stderr and exit with status 2."""
    typer.echo(message, err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the ``tamiyo-stream`` script."""
    app()
