"""The commands of ``tamiyo-stream`` (design §14).

Every command imports what it needs when it runs: ``--help`` must not load torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tamiyo_stream.cli import bench, checkpoint, contracts, dead_letters, operator, replay
from tamiyo_stream.cli.shell import JsonOption, effective_settings, fail, on_the_bus
from tamiyo_stream.demo.options import DemoOptions, Service

app = typer.Typer(
    name="tamiyo-stream",
    help="Strategic controller for training runs that grow neural networks: reads their state from Redis Streams, "
    "answers every step with a signed, explained decision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(contracts.schema_app, name="schema")
app.add_typer(contracts.config_app, name="config")
app.add_typer(operator.app, name="operator")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(dead_letters.app, name="dlq")
app.add_typer(bench.app, name="bench")
app.command("record")(replay.record)
app.command("replay")(replay.replay)


@app.command()
def run() -> None:
    """Run the worker against the Redis of TAMIYO_REDIS_URL until SIGTERM."""
    # Read once, when torch loads its threads: one that spins while another process has the core costs both.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    settings = effective_settings()
    from tamiyo_stream.worker.service import StartFailed, run_worker  # noqa: PLC0415

    try:
        run_worker(settings)
    except StartFailed as error:
        fail(str(error))


@app.command()
def check() -> None:
    """Check that everything the worker needs is there; say what to do where it is not."""
    from tamiyo_stream.check import run_checks  # noqa: PLC0415

    raise typer.Exit(run_checks(effective_settings()))


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 150,
    headless: Annotated[bool, typer.Option("--headless", help="Plain lines instead of the live view.")] = False,
    json: JsonOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of model, data order and Tamiyo's network.")] = 5,
    without: Annotated[
        list[Service] | None, typer.Option(help="Leave a service out; may be given several times.")
    ] = None,
    swap_at: Annotated[
        int | None, typer.Option(min=1, help="Publish another policy after this step; the worker swaps it in.")
    ] = None,
) -> None:
    """Train a real model under Tamiyo's control over an embedded Redis. Needs nothing else."""
    from tamiyo_stream.demo.command import run_demo  # noqa: PLC0415

    options = DemoOptions(
        steps=steps,
        headless=headless,
        json_file=json,
        seed=seed,
        without=frozenset(without or ()),
        swap_at=swap_at,
    )
    raise typer.Exit(run_demo(options))


@app.command("explain")
def explain(
    command_id: Annotated[str | None, typer.Argument(metavar="[COMMAND_ID]", help="As commands carry it.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Without an id: so many of the newest.")] = 1,
) -> None:
    """Say in words what was decided and why, from the bus alone."""
    from tamiyo_stream.operator import explain_commands  # noqa: PLC0415

    on_the_bus(lambda settings: explain_commands(settings, command_id, last))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Follow until Ctrl-C.")] = False,
) -> None:
    """Show the runs and their health, from the bus alone."""
    from tamiyo_stream.operator import show_status  # noqa: PLC0415

    on_the_bus(lambda settings: show_status(settings, watch=watch))


@app.command()
def reference(
    out: Annotated[Path, typer.Option(help="Directory of the documentation.")] = Path("docs"),
) -> None:
    """Write every generated page: wire, settings, features, relations, risk rules, telemetry, blending."""
    from tamiyo_stream.reference import write_pages  # noqa: PLC0415

    for path in write_pages(out):
        typer.echo(f"wrote {path}")


def main() -> None:
    """Entry point of the ``tamiyo-stream`` script."""
    app()
