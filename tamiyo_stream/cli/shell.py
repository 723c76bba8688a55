"""What the commands share: settings, files, and how a failure is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from tamiyo_stream.settings import Settings

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON to FILE (- = stdout).", metavar="FILE")
]


def effective_settings() -> Settings:
    """Return the settings, or say what is wrong with them and exit."""
    from tamiyo_stream.settings import SettingsError, load_settings  # noqa: PLC0415

    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error))


def on_the_bus(command: Callable[[Settings], int]) -> None:
    """Run an operator's command; what it cannot do is said in one line, with exit status 2."""
    import redis  # noqa: PLC0415

    from tamiyo_stream.worker.connection import RedisUrlInvalid, advice_for  # noqa: PLC0415

    try:
        status = command(effective_settings())
    except (redis.RedisError, OSError) as error:
        fail(f"{error}; {advice_for(error)}")
    except (LookupError, ValueError, RedisUrlInvalid) as error:
        fail(str(error))
    raise typer.Exit(status)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, or to stdout for ``-``."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def fail(message: str) -> NoReturn:
    """Print ``message`` to stderr and exit with status 2."""
    typer.echo(message, err=True)
    raise typer.Exit(2)
