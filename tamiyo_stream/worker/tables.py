"""Keeps what every run shares up to date from the feeds: blueprints, safety sheets, vocabularies, policy updates.

None of them triggers a decision (design §2): later steps read the tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from consumers.delivery import Delivery
from consumers.feed import TableFeed
from producers.commit import Commit, Committer
from schemas.catalogue import MESSAGES, Stream
from schemas.entry import decode_entry
from schemas.errors import EntryError
from schemas.operator import OperatorDirective
from schemas.record import Message
from schemas.simic import PolicyUpdate, RegistrySnapshot
from schemas.telemetry import EmergencySignal
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.registry_exchange import SnapshotRefused, merge_snapshot
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.refusals import dead_letter, new_id, reason_of

FEEDS = (Stream.BLUEPRINTS, Stream.SAFETY, Stream.POLICY, Stream.EMERGENCY)
#: What Tamiyo itself publishes on a stream that it also reads.
OWN_TYPES = {
    Stream.EMERGENCY: frozenset(
        spec.name.encode() for spec in MESSAGES.values() if Stream.EMERGENCY in spec.sent_on
    )
}
#: Unknown blueprint versions remembered as asked for; the set starts afresh beyond it.
MAX_ASKED = 4096

log = structlog.get_logger("tamiyo.tables")


class TableKeeper:
    """Fills ``tables`` and ``registries`` from ``feed``.

    A refused entry goes to the dead letter once, whichever worker is first.

    Args:
        on_policy_update: is given every verified policy update, in the order of the stream.
    """

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        registries: Registries,
        feed: TableFeed,
        committer: Committer,
        on_policy_update: Callable[[PolicyUpdate], None],
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._registries = registries
        self._feed = feed
        self._committer = committer
        self._on_policy_update = on_policy_update
        self._asked: set[tuple[str, str | None]] = set()

    async def catch_up(self) -> None:
        """Read everything the feeds hold already."""
        while await self._apply_next(self._feed.poll):
            pass

    async def follow(self, beat: Callable[[], None]) -> None:
        """Apply new entries for ever; ``beat`` is called in every round, also where there are none."""
        while True:
            beat()
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
            if delivery.fields.get(b"type") in OWN_TYPES.get(delivery.stream, ()):
                continue
            try:
                entry = decode_entry(delivery.fields, self._settings.keyring, stream=delivery.stream)
                self._store(entry.message)
            except EntryError as error:
                await self._refuse(delivery, reason_of(error), str(error))
            except SnapshotRefused as error:
                await self._refuse(delivery, error.reason, str(error))
        return bool(found)

    def _store(self, message: Message) -> None:
        match message:
            case Blueprint():
                self._tables.add_blueprint(message)
            case BlueprintSafetySheet():
                self._tables.add_sheet(message)
            case BlueprintSafetyFailed():
                self._tables.add_failure(message)
            case EmergencySignal():
                if self._tables.add_emergency(message):
                    log.warning(
                        "emergency_signal",
                        level=message.level.name,
                        run_id=message.run_id,
                        origin=message.origin,
                        reason=message.reason,
                    )
            case OperatorDirective():
                self._tables.add_directive(message)
                log.warning("operator_directive", **msgspec.to_builtins(message))
            case RegistrySnapshot():
                added = merge_snapshot(self._registries, message)
                log.info("registry_snapshot", registry=message.registry, added=added)
            case PolicyUpdate():
                if self._tables.add_policy_update(message):
                    log.info("policy_update_received", policy_id=message.policy_id, sha256=message.sha256)
                self._on_policy_update(message)

    async def _refuse(self, delivery: Delivery, reason: str, detail: str) -> None:
        output = dead_letter(delivery, self._settings, reason=reason, detail=detail)
        commit = Commit(
            commit_id=new_id(),
            outputs=[output],
            once_key=f"{self._settings.key_prefix}:refused:{delivery.key}:{delivery.entry_id}",
        )
        await through_outages("refuse entry", lambda: self._committer.commit(commit))
