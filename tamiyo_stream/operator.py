"""Commands of an operator: directives to the workers; decisions and status, from the bus alone."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import redis
from rich.console import Console, RenderableType
from rich.live import Live

from schemas.catalogue import Stream
from schemas.entry import decode_entry, encode_entry
from schemas.enums import Override
from schemas.errors import EntryError
from schemas.operator import OperatorDirective
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from tamiyo_stream.hub.status import render_status
from tamiyo_stream.policy.explain import explain
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import open_blocking_client

PAGE = 500
#: Newest telemetry entries that a status is made of: some intervals of some runs.
STATUS_ENTRIES = 500
WATCH_EVERY_S = 1.0


class CommandNotFound(LookupError):
    """The commands stream holds no such command."""


def direct(settings: Settings, run_id: str | None, reason: str, **words: Override) -> int:
    """Publish a directive on one run, or on all where ``run_id`` is None; return the exit status."""
    directive = OperatorDirective(
        issued_at=time.time_ns(),
        issued_by=f"{getpass.getuser()}@{socket.gethostname()}",
        run_id=run_id,
        reason=reason,
        **words,
    )
    fields: dict[Any, Any] = dict(encode_entry(directive, settings.keyring))
    with open_blocking_client(settings) as client:
        client.xadd(settings.key(Stream.POLICY), fields)
    told = ", ".join(f"{subject.replace('_', ' ')} {word.name.lower()}" for subject, word in words.items())
    Console().print(f"{told} for {run_id or 'all runs'}: each run heeds it with its next step", highlight=False)
    return 0


def explain_commands(settings: Settings, command_id: str | None, last: int) -> int:
    """Print one command, or the ``last`` ones, in words; return the exit status.

    Raises:
        CommandNotFound: no command of this id, or none at all.
    """
    found: list[AdaptationCommand] = []
    with open_blocking_client(settings) as client:
        for command in _newest_first(client, settings):
            if command_id is None or command.command_id == command_id:
                found.append(command)
            if len(found) >= (1 if command_id is not None else last):
                break
    if not found:
        raise CommandNotFound(
            f"{settings.key(Stream.COMMANDS)} holds no command {command_id or ''}".rstrip()
            + "; commands leave it beyond TAMIYO_COMMANDS_MAXLEN"
        )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for command in reversed(found):
        console.print("\n".join(explain(command)) + "\n")
    return 0


def _newest_first(client: redis.Redis, settings: Settings) -> Iterator[AdaptationCommand]:
    end = "+"
    while True:
        page = cast("list[Any]", client.xrevrange(settings.key(Stream.COMMANDS), max=end, count=PAGE))
        for _, fields in page:
            try:
                message = decode_entry(fields, settings.keyring).message
            except EntryError:
                continue  # not ours: somebody else wrote to the stream
            if isinstance(message, AdaptationCommand):
                yield message
        if len(page) < PAGE:
            return
        end = f"({page[-1][0].decode()}"


def show_status(settings: Settings, *, watch: bool) -> int:
    """Print the runs and their health, from the bus alone; ``watch``: again and again, until Ctrl-C."""
    with open_blocking_client(settings) as client:
        if not watch:
            Console().print(_status(client, settings))
            return 0
        with Live(_status(client, settings), auto_refresh=False, screen=True) as screen:
            try:
                while True:
                    time.sleep(WATCH_EVERY_S)
                    screen.update(_status(client, settings), refresh=True)
            except KeyboardInterrupt:
                return 0


def _status(client: redis.Redis, settings: Settings) -> RenderableType:
    newest = cast("list[Any]", client.xrevrange(settings.key(Stream.TELEMETRY), count=STATUS_ENTRIES))
    packets = [packet for _, fields in reversed(newest) if (packet := _telemetry(fields, settings)) is not None]
    return render_status(packets, time.time_ns())


def _telemetry(fields: Any, settings: Settings) -> TelemetryPacket | None:
    try:
        message = decode_entry(fields, settings.keyring).message
    except EntryError:
        return None
    return message if isinstance(message, TelemetryPacket) else None
