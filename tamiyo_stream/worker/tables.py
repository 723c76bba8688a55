"""Keeps the blueprint and safety tables up to date from their feeds (design §2: they never trigger a decision)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from consumers.delivery import Delivery
from consumers.feed import TableFeed
from producers.commit import Commit, Committer
from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.record import Message
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.refusals import dead_letter, new_id, reason_of

FEEDS = (Stream.BLUEPRINTS, Stream.SAFETY)
#: Unknown blueprint versions remembered as asked for; the set starts afresh beyond it.
MAX_ASKED = 4096


class TableKeeper:
    """Fills ``tables`` from ``feed``; a refused entry goes to the dead letter once, whichever worker is first."""

    def __init__(self, settings: Settings, tables: Tables, feed: TableFeed, committer: Committer) -> None:
        self._settings = settings
        self._tables = tables
        self._feed = feed
        self._committer = committer
        self._asked: set[tuple[str, str | None]] = set()

    async def catch_up(self) -> None:
        """Read everything the feeds hold already."""
        while await self._apply_next(self._feed.poll):
            pass

    async def follow(self) -> None:
        """Apply new entries for ever."""
        while True:
            await self._apply_next(self._feed.follow)

    async def ensure(self, blueprint_id: str | None, version: str | None) -> None:
        """Look for a host blueprint that a step names and nobody has seen yet: it may have arrived this moment.

        One read without waiting per unknown version; a blueprint that is not there is missing and its features are
        masked until the feed brings it.
        """
        if blueprint_id is None or (blueprint_id, version) in self._asked:
            return
        known = self._tables.hosts.get(blueprint_id)
        if known is not None and version in {None, known.blueprint_version}:
            return
        if len(self._asked) >= MAX_ASKED:
            self._asked.clear()
        self._asked.add((blueprint_id, version))
        await self.catch_up()

    async def _apply_next(self, read: Callable[[], Awaitable[list[Delivery]]]) -> bool:
        found = await through_outages("read tables", read)
        for delivery in found:
            try:
                entry = decode_entry(delivery.fields, self._settings.keyring, stream=delivery.stream)
            except EntryError as error:
                await self._refuse(delivery, error)
            else:
                self._store(entry.message)
        return bool(found)

    def _store(self, message: Message) -> None:
        match message:
            case Blueprint():
                self._tables.add_blueprint(message)
            case BlueprintSafetySheet():
                self._tables.add_sheet(message)
            case BlueprintSafetyFailed():
                self._tables.add_failure(message)

    async def _refuse(self, delivery: Delivery, error: EntryError) -> None:
        output = dead_letter(delivery, self._settings, reason=reason_of(error), detail=str(error))
        commit = Commit(
            commit_id=new_id(),
            outputs=[output],
            once_key=f"{self._settings.key_prefix}:refused:{delivery.key}:{delivery.entry_id}",
        )
        await through_outages("refuse entry", lambda: self._committer.commit(commit))
