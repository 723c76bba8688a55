"""``tamiyo-stream dlq``: entries that could not be used."""

from __future__ import annotations

from typing import Annotated

import typer

from tamiyo_stream.cli.shell import JsonOption, on_the_bus

app = typer.Typer(help="The dead letter: entries that could not be used.", no_args_is_help=True)


LetterIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, as `dlq ls` shows them.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter.")]
ReasonOption = Annotated[str | None, typer.Option(help="Letters with this reason.", metavar="REASON")]


@app.command("ls")
def ls(reason: ReasonOption = None, json: JsonOption = None) -> None:
    """List the refused entries, oldest first."""
    from tamiyo_stream.dead_letters import list_letters  # noqa: PLC0415

    on_the_bus(lambda settings: list_letters(settings, reason, json))


@app.command("show")
def show(letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dlq ls` shows it.")]) -> None:
    """Show one refused entry, and what a reader makes of it now."""
    from tamiyo_stream.dead_letters import show_letter  # noqa: PLC0415

    on_the_bus(lambda settings: show_letter(settings, letter_id))


@app.command("replay")
def replay(ids: LetterIds = None, every: AllOption = False, reason: ReasonOption = None) -> None:
    """Give refused entries back to the streams they came from."""
    from tamiyo_stream.dead_letters import Chosen, replay_letters  # noqa: PLC0415

    on_the_bus(lambda settings: replay_letters(settings, Chosen(tuple(ids or ()), every, reason)))


@app.command("purge")
def purge(ids: LetterIds = None, every: AllOption = False, reason: ReasonOption = None) -> None:
    """Delete refused entries for good."""
    from tamiyo_stream.dead_letters import Chosen, purge_letters  # noqa: PLC0415

    on_the_bus(lambda settings: purge_letters(settings, Chosen(tuple(ids or ()), every, reason)))
