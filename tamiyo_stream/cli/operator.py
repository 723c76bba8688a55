"""``tamiyo-stream operator``: an operator's word to the workers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tamiyo_stream.cli.shell import on_the_bus

app = typer.Typer(help="Tell the workers what to do, whatever their rules say.", no_args_is_help=True)


class OverrideWord(StrEnum):
    """What an operator may say."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


WordArgument = Annotated[OverrideWord, typer.Argument(help="auto gives it back to its rules.")]
RunOption = Annotated[str | None, typer.Option("--run", help="One run; all runs without it.", metavar="RUN")]
WhyOption = Annotated[str, typer.Option(help="Why, for the record.", metavar="TEXT")]


@app.command("conservative")
def conservative(word: WordArgument, run_id: RunOption = None, why: WhyOption = "") -> None:
    """Force conservative mode on (nothing but harmless pauses) or off."""
    _direct(run_id, why, conservative=word)


@app.command("network")
def network(word: WordArgument, run_id: RunOption = None, why: WhyOption = "") -> None:
    """Hold the network's breaker closed (on) or open (off: it is not asked, runs get pauses)."""
    _direct(run_id, why, inference_breaker=word)


def _direct(run_id: str | None, why: str, **words: OverrideWord) -> None:
    from schemas.enums import Override  # noqa: PLC0415
    from tamiyo_stream.operator import direct  # noqa: PLC0415

    told = {subject: Override[word.name] for subject, word in words.items()}
    on_the_bus(lambda settings: direct(settings, run_id, why, **told))
