"""The recording's file: what is written is read back, and what is no recording is refused by name."""

from __future__ import annotations

import hashlib
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue import Stream
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.replay.recording import (
    NotARecording,
    RecordedEntry,
    RecordingCorrupt,
    RecordingRefused,
    RecordingTooLarge,
    RecordingUntrusted,
    VerifiedRecording,
)
from tamiyo_stream.replay.recording_file import (
    MAGIC,
    VERSION,
    RecordingLimits,
    RecordingNotSaved,
    read_recording,
    write_recording,
)
from tests.replay.conftest import KEYRING, entry, recording_of


def packet(step: int) -> SystemStatePacket:
    return SystemStatePacket(run_id="run", packet_id=f"run-{step}", global_step=step, timestamp_ns=step)


def sample(count: int = 3):
    return recording_of(*[entry(Stream.STATE, 1000 + step, packet(step)) for step in range(count)], decided=count)


def sealed(body: bytes, version: int = VERSION) -> bytes:
    data = MAGIC + bytes([version]) + body
    return data + hashlib.sha256(data).digest()


def frame(record: bytes) -> bytes:
    return len(record).to_bytes(4, "big") + record


def test_a_recording_is_read_back_verbatim(tmp_path) -> None:
    path, recording = tmp_path / "run.rec", sample()
    size = write_recording(path, recording)
    assert path.stat().st_size == size
    found = read_recording(path)
    assert found.header == recording.header
    assert found.entries == recording.entries


@given(
    st.lists(
        st.builds(
            RecordedEntry,
            st.sampled_from(Stream),
            st.tuples(st.integers(0, 2**48), st.integers(0, 2**32)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
            st.dictionaries(st.binary(max_size=8), st.binary(max_size=64), max_size=6),
        ),
        max_size=8,
    )
)
def test_any_entries_survive_the_file(tmp_path_factory, entries) -> None:
    path = tmp_path_factory.mktemp("recording") / "run.rec"
    write_recording(path, recording_of(*entries))
    assert read_recording(path).entries == entries


def test_every_flipped_byte_is_noticed(tmp_path) -> None:
    path = tmp_path / "run.rec"
    write_recording(path, sample())
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises((RecordingCorrupt, NotARecording)):
            read_recording(path)


def test_every_truncation_is_noticed(tmp_path) -> None:
    path = tmp_path / "run.rec"
    write_recording(path, sample())
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises((RecordingCorrupt, NotARecording)):
            read_recording(path)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"not compressed", RecordingCorrupt, "cannot be unpacked"),
        (zlib.compress(b""), RecordingCorrupt, "no header"),
        (zlib.compress(frame(b"\xc1")), RecordingCorrupt, "cannot be read"),
        (zlib.compress(frame(msgspec.msgpack.encode({"run_id": 5}))), RecordingCorrupt, "cannot be read"),
        (zlib.compress(b"\x00\x00\x00\x09short"), RecordingCorrupt, "within a record"),
        (zlib.compress(b"\xff\xff\xff\xff"), RecordingTooLarge, "over a limit"),
        (zlib.compress(b"")[:-2], RecordingCorrupt, "compressed part"),
        (zlib.compress(b"") + b"more", RecordingCorrupt, "goes on"),
    ],
)
def test_a_sealed_file_with_wrong_content_is_refused(tmp_path, body, kind, words) -> None:
    path = tmp_path / "run.rec"
    path.write_bytes(sealed(body))
    with pytest.raises(kind, match=words):
        read_recording(path)


def test_an_entry_with_an_impossible_id_is_refused(tmp_path) -> None:
    path = tmp_path / "run.rec"
    write_recording(path, recording_of(RecordedEntry(Stream.STATE, "yesterday", {})))
    with pytest.raises(RecordingCorrupt):
        read_recording(path)


def test_another_version_and_another_file_are_told_apart(tmp_path) -> None:
    path = tmp_path / "run.rec"
    path.write_bytes(sealed(zlib.compress(b""), version=VERSION + 1))
    with pytest.raises(NotARecording, match="version"):
        read_recording(path)
    path.write_bytes(b"something else")
    with pytest.raises(NotARecording, match="tamiyo-stream record"):
        read_recording(path)


def test_a_small_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path) -> None:
    path = tmp_path / "run.rec"
    limits = RecordingLimits(file=1 << 20, unpacked=4 << 20, record=2 << 20)
    path.write_bytes(sealed(zlib.compress(frame(bytes(1 << 20)) * 64)))
    assert path.stat().st_size < limits.file
    with pytest.raises((RecordingTooLarge, RecordingCorrupt)) as refused:
        read_recording(path, limits)
    assert isinstance(refused.value, RecordingRefused)


@pytest.mark.parametrize(
    "limits",
    [
        RecordingLimits(file=64),
        RecordingLimits(unpacked=64),
        RecordingLimits(record=64),
    ],
)
def test_each_limit_holds_for_writing_and_for_reading(tmp_path, limits) -> None:
    path = tmp_path / "run.rec"
    with pytest.raises(RecordingTooLarge, match="--to"):
        write_recording(path, sample(), limits)
    assert not path.exists()
    write_recording(path, sample())
    with pytest.raises(RecordingTooLarge):
        read_recording(path, limits)


def test_a_directory_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingNotSaved, match="recording"):
        write_recording(tmp_path / "file" / "run.rec", sample())


@pytest.mark.parametrize(
    "keyring",
    [Keyring({"k1": b"another secret"}), Keyring({"other": b"a secret of the tests"})],
)
def test_a_foreign_signature_is_refused_and_the_entry_named(keyring) -> None:
    with pytest.raises(RecordingUntrusted, match="1000-0"):
        VerifiedRecording.of(sample(), keyring)


def test_an_altered_entry_is_refused_even_where_the_file_is_sealed_anew(tmp_path) -> None:
    first, *rest = sample().entries
    forged = RecordedEntry(first.stream, first.entry_id, {**first.fields, b"id": b"forged"})
    path = tmp_path / "run.rec"
    write_recording(path, recording_of(forged, *rest))
    with pytest.raises(RecordingUntrusted, match="invalid_signature"):
        VerifiedRecording.of(read_recording(path), KEYRING)


def test_an_entry_on_a_stream_that_does_not_carry_it_is_refused() -> None:
    with pytest.raises(RecordingUntrusted, match="unknown_type"):
        VerifiedRecording.of(recording_of(entry(Stream.SAFETY, 1, packet(1))), KEYRING)
