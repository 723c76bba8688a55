"""``tamiyo-stream dlq``: look at refused entries, send them again, delete them (design §10).

A letter holds the original entry whole, so that what was refused for a reason that has passed (a key not yet
known, a release too old) can be given back to its stream.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import redis
from rich.console import Console
from rich.table import Table

from producers.dead_letter import PREFIX
from schemas.catalogue import MESSAGES, Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.partitions import ORDERED
from schemas.signing import Keyring
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import open_blocking_client

PAGE = 500
_ENTRY_ID = re.compile(r"\d+-\d+")


class LetterNotFound(LookupError):
    """The dead letter holds no entry of this id."""


class LetterUnusable(ValueError):
    """A letter cannot be sent again: it does not say where it came from, or its content is lost."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One refused entry.

    Attributes:
        letter_id: its id in the dead letter. original: the entry's own fields.
        reason, detail: why it was refused. stream, entry_id: where it was read. deliveries: how often.
    """

    letter_id: str
    reason: str
    detail: str
    stream: str
    entry_id: str
    deliveries: int
    original: Mapping[bytes, bytes] = field(repr=False)

    @property
    def refused_at(self) -> datetime:
        """Redis's time of the refusal."""
        return datetime.fromtimestamp(int(self.letter_id.split("-")[0]) / 1000, UTC)

    @property
    def type(self) -> str:
        """The message type it claims, empty where it names none."""
        return self.original.get(b"type", b"").decode("utf-8", "replace")


class DeadLetters:
    """The dead letter at ``key``; entries are sent again only to ``streams``, whatever a letter says.

    Every method raises redis.RedisError where Redis is away.
    """

    def __init__(self, client: redis.Redis, key: str, streams: Container[str]) -> None:
        self._client = client
        self._key = key
        self._streams = streams

    def __iter__(self) -> Iterator[Letter]:
        """Yield every letter, oldest first."""
        start = "-"
        while True:
            page = cast("list[Any]", self._client.xrange(self._key, min=start, count=PAGE))
            for letter_id, fields in page:
                yield _letter(letter_id.decode(), fields)
            if len(page) < PAGE:
                return
            start = f"({page[-1][0].decode()}"

    def get(self, letter_id: str) -> Letter:
        """Return one letter.

        Raises:
            LetterNotFound: there is none of this id.
        """
        found = (
            cast("list[Any]", self._client.xrange(self._key, letter_id, letter_id))
            if _ENTRY_ID.fullmatch(letter_id)
            else []
        )
        if not found:
            raise LetterNotFound(f"{self._key} holds no letter {letter_id!r}; `tamiyo-stream dlq ls` lists them")
        return _letter(letter_id, found[0][1])

    def replay(self, letter: Letter) -> str:
        """Put the original entry back into its stream and take the letter out, both or neither; return its new id.

        A step that was decided meanwhile is refused as stale: replaying never decides twice.

        Raises:
            LetterUnusable: its content is lost, or it was not read from a stream of ours.
        """
        if letter.stream not in self._streams:
            raise LetterUnusable(
                f"letter {letter.letter_id} comes from {letter.stream!r}, which is no input of this worker; "
                "set TAMIYO_STREAM_NAMES and TAMIYO_PARTITIONS as they were, or purge it"
            )
        if not letter.original:
            raise LetterUnusable(
                f"letter {letter.letter_id} ({letter.reason}) holds no entry that could be sent again; purge it"
            )
        with self._client.pipeline(transaction=True) as pipe:
            fields: dict[Any, Any] = dict(letter.original)
            pipe.xadd(letter.stream, fields)
            pipe.xdel(self._key, letter.letter_id)
            return cast("bytes", pipe.execute()[0]).decode()

    def purge(self, letters: Iterable[Letter]) -> int:
        """Delete ``letters``; return how many there still were."""
        ids = [letter.letter_id for letter in letters]
        return sum(
            int(self._client.xdel(self._key, *ids[start : start + PAGE])) for start in range(0, len(ids), PAGE)
        )


def explain(letter: Letter, keyring: Keyring | None) -> str:
    """Return what a reader makes of the original entry now: its message, or why it would be refused again."""
    try:
        return repr(decode_entry(letter.original, keyring).message)
    except EntryError as error:
        return f"would be refused again ({error.reason}): {error}"


def _letter(letter_id: str, fields: Mapping[bytes, bytes]) -> Letter:
    def added(name: str) -> str:
        return fields.get(PREFIX + name.encode(), b"").decode("utf-8", "replace")

    return Letter(
        letter_id=letter_id,
        reason=added("reason"),
        detail=added("detail"),
        stream=added("stream"),
        entry_id=added("entry_id"),
        deliveries=int(added("deliveries") or 0),
        original={name: value for name, value in fields.items() if not name.startswith(PREFIX)},
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters a command means: those of ``ids``, or ``every`` one, or those with a ``reason``."""

    ids: tuple[str, ...] = ()
    every: bool = False
    reason: str | None = None

    def of(self, letters: DeadLetters) -> list[Letter]:
        """Return the letters meant.

        Raises:
            NothingChosen: neither ids, nor a reason, nor all.
            LetterNotFound: an id that is not there.
        """
        if self.ids:
            return [letters.get(letter_id) for letter_id in self.ids]
        if not self.every and self.reason is None:
            raise NothingChosen("name the letters: give ids, --reason REASON or --all")
        return [letter for letter in letters if self.reason in {None, letter.reason}]


class NothingChosen(ValueError):
    """A command that changes letters was told neither which nor all of them."""


def list_letters(settings: Settings, reason: str | None, json_file: Path | None) -> int:
    """Print the letters as a table, or as JSON to ``json_file`` (``-`` = stdout); return the exit status."""
    with _open(settings) as letters:
        rows = [letter for letter in letters if reason in {None, letter.reason}]
    if json_file is not None:
        text = json.dumps([_as_json(letter) for letter in rows], indent=2) + "\n"
        if str(json_file) == "-":
            sys.stdout.write(text)
        else:
            json_file.write_text(text, encoding="utf-8")
        return 0
    table = Table("id", "refused at", "reason", "type", "stream", "deliveries", "detail", box=None)
    for letter in rows:
        table.add_row(
            letter.letter_id,
            f"{letter.refused_at:%Y-%m-%d %H:%M:%S}",
            letter.reason,
            letter.type,
            letter.stream,
            str(letter.deliveries),
            letter.detail,
        )
    Console().print(table if rows else "the dead letter is empty")
    return 0


def show_letter(settings: Settings, letter_id: str) -> int:
    """Print one letter and what a reader makes of it now; return the exit status."""
    with _open(settings) as letters:
        letter = letters.get(letter_id)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for name, value in _as_json(letter).items():
        console.print(f"{name:<12} {value}")
    for field_name, content in letter.original.items():
        console.print(f"{field_name.decode('utf-8', 'replace'):<12} {_shown(content)}")
    console.print(f"{'now':<12} {explain(letter, settings.keyring)}")
    return 0


def replay_letters(settings: Settings, chosen: Chosen) -> int:
    """Send the chosen letters again; return 1 where one of several could not be sent."""
    failed = 0
    with _open(settings) as letters:
        for letter in chosen.of(letters):
            try:
                entry_id = letters.replay(letter)
            except LetterUnusable as error:
                failed += 1
                Console(stderr=True).print(str(error), soft_wrap=True)
            else:
                Console().print(f"{letter.letter_id} → {letter.stream} {entry_id}", highlight=False)
    return 1 if failed else 0


def purge_letters(settings: Settings, chosen: Chosen) -> int:
    """Delete the chosen letters; return the exit status."""
    with _open(settings) as letters:
        Console().print(f"{letters.purge(chosen.of(letters))} deleted")
    return 0


@contextmanager
def _open(settings: Settings) -> Iterator[DeadLetters]:
    inputs = {
        settings.key(stream, number)
        for spec in MESSAGES.values()
        for stream in spec.received_on
        for number in range(settings.partitions if stream in ORDERED else 1)
    }
    with open_blocking_client(settings) as client:
        yield DeadLetters(client, settings.key(Stream.DEAD_LETTER), inputs)


def _as_json(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.letter_id,
        "refused_at": letter.refused_at.isoformat(),
        "reason": letter.reason,
        "detail": letter.detail,
        "stream": letter.stream,
        "entry_id": letter.entry_id,
        "deliveries": letter.deliveries,
        "type": letter.type,
    }


def _shown(content: bytes) -> str:
    """Return a field as text where it is text, else its size and beginning."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ""
    return text if text.isprintable() and text else f"{len(content)} bytes: {content[:32].hex(' ')}"
