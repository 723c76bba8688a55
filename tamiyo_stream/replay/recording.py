"""A recording as a value: the entries that a run was decided from, as they lay on the bus, and its commands.

Entries are kept whole, with stream, id and signature: what is replayed is what was published, and says who did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from schemas.catalogue import MESSAGES, Stream
from schemas.entry import Entry, decode_entry
from schemas.errors import EntryError
from schemas.record import Message
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.settings import Settings

#: Settings that a decision depends on; a replay takes them from the recording.
DECIDING_SETTINGS = frozenset(
    {
        "max_nodes",
        "max_edges",
        "device",
        "executor",
        "threads",
        "model_seed",
        "checkpoint",
        "precision",
        "compile_model",
        "lr_change_max",
        "execution_deadline_ms",
        "decision_deadline_ms",
        "risk",
        "conservative",
        "breaker",
        "windows",
        "blend_mode",
        "pause_quota",
    }
)
#: What every run shares: read from their beginning, as a worker does.
SHARED = (Stream.BLUEPRINTS, Stream.SAFETY, Stream.POLICY, Stream.EMERGENCY)


class RecordingRefused(ValueError):
    """A file is no recording that can be used. Subclasses say in which way; the text says what to do."""


class NotARecording(RecordingRefused):
    """The file is something else, or of a version that this release does not read."""


class RecordingCorrupt(RecordingRefused):
    """The file was cut off or altered."""


class RecordingTooLarge(RecordingRefused):
    """The file, or what it unpacks to, is over its limit; it was not read further."""


class RecordingUntrusted(RecordingRefused):
    """An entry is not signed with an active key, or is none that its stream carries."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the recording as a whole.

    Attributes:
        run_id: the run. settings: those of :data:`DECIDING_SETTINGS`, as the worker had them.
        registries: key -> index by vocabulary at the time of recording. Numbers never move, so that those of the
            end are also those of every step before it.
        from_id, to_id: Redis ids that bound the run's entries; empty = all.
        decided: steps that the run's saved state counts as decided; None where there is no saved state.
    """

    run_id: str
    settings: dict[str, Any]
    registries: dict[str, dict[str, int]]
    from_id: str = ""
    to_id: str = ""
    decided: int | None = None


class RecordedEntry(msgspec.Struct, frozen=True, array_like=True):
    """One stream entry, verbatim: its stream's role, its Redis id, its raw fields."""

    stream: Stream
    entry_id: str
    fields: dict[bytes, bytes]

    @property
    def position(self) -> tuple[int, int]:
        """Redis's time, Unix ms, and the number within it."""
        milliseconds, number = self.entry_id.split("-")
        return int(milliseconds), int(number)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a file holds, not yet verified."""

    header: Header
    entries: Sequence[RecordedEntry] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """An entry whose signature was checked, decoded. ``at_ms`` is Redis's time of it, Unix ms."""

    recorded: RecordedEntry
    entry: Entry

    @classmethod
    def of(cls, recorded: RecordedEntry, keyring: Keyring | None) -> Self:
        """Verify and decode ``recorded``.

        Raises:
            RecordingUntrusted: naming stream, id and reason.
        """
        try:
            return cls(recorded, decode_entry(recorded.fields, keyring, stream=recorded.stream))
        except EntryError as error:
            raise RecordingUntrusted(
                f"entry {recorded.entry_id} of {recorded.stream} is refused ({error.reason}): {error}; give the "
                "keys that the bus had (TAMIYO_SIGNING_SECRET, TAMIYO_SIGNING_KID), or record the run again"
            ) from None

    @property
    def message(self) -> Message:
        """The decoded message."""
        return self.entry.message

    @property
    def at_ms(self) -> int:
        """Redis's time of the entry, Unix ms."""
        return self.recorded.position[0]


@dataclass(frozen=True, slots=True)
class VerifiedRecording:
    """A recording whose entries are verified, each kind in Redis's order.

    ``inputs``: states and seed exports. ``shared``: what the tables are filled from. ``commands``: the decisions.
    """

    header: Header
    inputs: Sequence[Verified] = field(repr=False)
    shared: Sequence[Verified] = field(repr=False)
    commands: Sequence[Verified] = field(repr=False)

    @classmethod
    def of(cls, recording: Recording, keyring: Keyring | None) -> Self:
        """Verify every entry.

        Raises:
            RecordingUntrusted: the first entry that is refused.
        """
        ordered = sorted(recording.entries, key=lambda entry: entry.position)
        found = [Verified.of(entry, keyring) for entry in ordered]
        return cls(
            header=recording.header,
            inputs=[item for item in found if item.recorded.stream in {Stream.STATE, Stream.SEEDS}],
            shared=[item for item in found if item.recorded.stream in SHARED],
            commands=[item for item in found if isinstance(item.message, AdaptationCommand)],
        )


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that a decision depends on, as plain values."""
    return settings.model_dump(mode="json", include=set(DECIDING_SETTINGS))


def is_input(message: Message, stream: Stream) -> bool:
    """Return whether a worker reads ``message`` on ``stream``; it passes over what it sent there itself."""
    return stream in MESSAGES[type(message).__name__].received_on
