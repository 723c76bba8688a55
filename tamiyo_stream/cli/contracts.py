"""``tamiyo-stream schema`` and ``config``: the wire contracts and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tamiyo_stream.cli.shell import effective_settings, write_text

schema_app = typer.Typer(help="The wire contracts.", no_args_is_help=True)
config_app = typer.Typer(help="The worker's settings.", no_args_is_help=True)


@schema_app.command("export")
def schema_export(
    out: Annotated[Path, typer.Option(help="File to write; - = stdout.")] = Path("docs/asyncapi.yaml"),
) -> None:
    """Write the wire contracts as AsyncAPI 3."""
    from schemas.asyncapi import render_asyncapi  # noqa: PLC0415

    write_text(out, render_asyncapi())


@config_app.command("show")
def config_show() -> None:
    """Print the effective configuration, secrets left out."""
    import json  # noqa: PLC0415

    typer.echo(json.dumps(effective_settings().redacted(), indent=2))


@config_app.command("reference")
def config_reference(
    out: Annotated[Path, typer.Option(help="File to write; - = stdout.")] = Path(
        "docs/reference/configuration.md"
    ),
) -> None:
    """Write the page that lists every setting."""
    from tamiyo_stream.settings import render_reference  # noqa: PLC0415

    write_text(out, render_reference())
