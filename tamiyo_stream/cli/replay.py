"""``tamiyo-stream record`` and ``tamiyo-stream replay``: a run in a file, and what a policy makes of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from tamiyo_stream.cli.shell import JsonOption, effective_settings, fail, on_the_bus


def record(
    run: Annotated[str, typer.Option(help="Id of the training run.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Where the recording goes.", metavar="FILE")],
    from_id: Annotated[str, typer.Option("--from", help="First Redis id; from the start.", metavar="ID")] = "",
    to_id: Annotated[str, typer.Option("--to", help="Last Redis id; to the end.", metavar="ID")] = "",
) -> None:
    """Keep what a run was decided from, and what was decided, in one file."""
    from tamiyo_stream.replay.commands import record as record_to_file  # noqa: PLC0415

    on_the_bus(lambda settings: record_to_file(settings, run, out, from_id=from_id, to_id=to_id))


def replay(
    file: Annotated[Path, typer.Argument(help="A recording.", metavar="FILE")],
    policy: Annotated[
        Path | None, typer.Option(help="Checkpoint that decides, instead of the worker's.", metavar="CKPT")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Checkpoint to compare with, instead of the record.", metavar="CKPT")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Decide a recorded run again, offline, and print what differs; exit status 1 where something does."""
    # As the worker does, before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import structlog  # noqa: PLC0415

    from tamiyo_stream.checkpoints.refusal import CheckpointRefused  # noqa: PLC0415
    from tamiyo_stream.replay.commands import replay_file, show_report  # noqa: PLC0415

    # The steps' own log lines are history.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    settings = effective_settings()
    try:
        report = replay_file(settings, file, policy, against)
    except CheckpointRefused as refused:
        fail(f"refused ({refused.reason}): {refused}")
    except (ValueError, OSError, RuntimeError) as error:
        fail(str(error))
    raise typer.Exit(show_report(report, json))
