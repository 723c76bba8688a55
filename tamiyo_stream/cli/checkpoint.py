"""``tamiyo-stream checkpoint``: policies as files (design §12)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamiyo_stream.cli.shell import effective_settings, on_the_bus

if TYPE_CHECKING:
    from tamiyo_stream.settings import Settings

app = typer.Typer(help="Policies as files: make, look at, check, compare, publish.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .pt or .safetensors checkpoint.")]
RegistriesOption = Annotated[
    Path | None,
    typer.Option("--registries", metavar="DIR", help="Registries of the worker, as var/tamiyo/registries."),
]


@app.command()
def init(
    out: Annotated[Path, typer.Option(help="File to write; .pt or .safetensors.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
    registries: RegistriesOption = None,
) -> None:
    """Write an untrained policy."""
    from tamiyo_stream.checkpoints import commands  # noqa: PLC0415

    keyring = effective_settings().keyring
    raise typer.Exit(commands.init(seed, out, registries_dir=registries, keyring=keyring))


@app.command()
def inspect(path: FileArgument) -> None:
    """Print what a checkpoint says about itself. Nothing in it is executed."""
    from tamiyo_stream.checkpoints import commands  # noqa: PLC0415

    raise typer.Exit(commands.inspect(path))


@app.command()
def verify(
    path: FileArgument,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="SHA-256 that was announced for it.")] = None,
    registries: RegistriesOption = None,
) -> None:
    """Check that a worker would take it; say why not."""
    from tamiyo_stream.checkpoints import commands  # noqa: PLC0415

    keyring = effective_settings().keyring
    raise typer.Exit(commands.verify(path, sha256=sha256, registries_dir=registries, keyring=keyring))


@app.command()
def diff(
    first: FileArgument, second: Annotated[Path, typer.Argument(metavar="FILE", help="To compare with.")]
) -> None:
    """Say what differs between two checkpoints; exit status 1 where something does."""
    from tamiyo_stream.checkpoints import commands  # noqa: PLC0415

    raise typer.Exit(commands.diff(first, second))


@app.command()
def publish(
    path: FileArgument,
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Where the workers read it, if not at this path.")
    ] = None,
) -> None:
    """Announce a checkpoint to the workers: they verify it and take it over while they run."""
    from schemas.catalogue import Stream  # noqa: PLC0415
    from tamiyo_stream.checkpoints import publishing  # noqa: PLC0415
    from tamiyo_stream.worker.connection import open_blocking_client  # noqa: PLC0415

    def announce(settings: Settings) -> int:
        with open_blocking_client(settings) as client:
            stream = settings.key(Stream.POLICY)
            return publishing.publish(path, client, stream=stream, keyring=settings.keyring, uri=uri)

    on_the_bus(announce)
