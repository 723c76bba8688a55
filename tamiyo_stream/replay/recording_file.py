"""The file of a recording: magic and version, compressed msgpack records, a SHA-256 over all of it.

Read as if an attacker had written it: size, magic and digest before anything is unpacked, and no more is unpacked
than the limits allow.

=============  =================================================================
bytes          content
=============  =================================================================
8              ``TAMIYOR`` and the version, 1
to the end     zlib stream of records: length (4 bytes, big-endian), msgpack.
               The first record is the header, each other one an entry.
32             SHA-256 of everything before
=============  =================================================================
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tamiyo_stream.replay.recording import (
    Header,
    NotARecording,
    RecordedEntry,
    Recording,
    RecordingCorrupt,
    RecordingTooLarge,
)
from tamiyo_stream.runs.durable_file import FileNotSaved, replace_file

MAGIC = b"TAMIYOR"
VERSION = 1
_DIGEST_BYTES = 32
_LENGTH_BYTES = 4
#: Bytes unpacked at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """Most bytes of a file, of what it unpacks to, and of one record (a policy update is the largest entry)."""

    file: int = 512 * 1024 * 1024
    unpacked: int = 2 * 1024 * 1024 * 1024
    record: int = 80 * 1024 * 1024


LIMITS = RecordingLimits()


class RecordingNotSaved(FileNotSaved):
    """The recording could not be written."""

    kind = "recording"


def write_recording(path: Path, recording: Recording, limits: RecordingLimits = LIMITS) -> int:
    """Write ``recording`` to ``path``, whole or not at all; return its size in bytes.

    Raises:
        RecordingTooLarge: a reader would refuse it.
        RecordingNotSaved: the disk refuses.
    """
    compressor = zlib.compressobj(6)
    parts = [MAGIC, bytes([VERSION])]
    unpacked = 0
    for record in (recording.header, *recording.entries):
        frame = msgspec.msgpack.encode(record)
        unpacked += _LENGTH_BYTES + len(frame)
        if len(frame) > limits.record or unpacked > limits.unpacked:
            raise _too_large("the recording", limits)
        parts += [compressor.compress(len(frame).to_bytes(_LENGTH_BYTES, "big")), compressor.compress(frame)]
    data = b"".join([*parts, compressor.flush()])
    if len(data) + _DIGEST_BYTES > limits.file:
        raise _too_large("the recording", limits)
    content = data + hashlib.sha256(data).digest()
    try:
        replace_file(path, content)
    except OSError as error:
        raise RecordingNotSaved(path, error) from None
    return len(content)


def read_recording(path: Path, limits: RecordingLimits = LIMITS) -> Recording:
    """Return what ``path`` holds; entries are not yet verified.

    Raises:
        OSError: the file cannot be read.
        NotARecording, RecordingCorrupt, RecordingTooLarge: it is not used further.
    """
    with path.open("rb") as file:
        data = file.read(limits.file + 1)
    if len(data) > limits.file:
        raise _too_large(str(path), limits)
    records = _records(_body(path, data), path, limits)
    try:
        header = msgspec.msgpack.decode(next(records), type=Header)
        entries = [_ENTRY.decode(record) for record in records]
        _ = [entry.position for entry in entries]
    except StopIteration:
        raise _corrupt(path, "holds no header") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecordingCorrupt | RecordingTooLarge):
            raise
        raise _corrupt(path, f"holds a record that cannot be read ({error})") from None
    return Recording(header, entries)


_ENTRY = msgspec.msgpack.Decoder(RecordedEntry)


def _body(path: Path, data: bytes) -> memoryview:
    """Return the compressed part of a file whose magic, version and digest are right."""
    start = len(MAGIC) + 1
    if not data.startswith(MAGIC):
        raise NotARecording(f"{path} is no recording; write one with `tamiyo-stream record`")
    if data[len(MAGIC) : start] != bytes([VERSION]):
        raise NotARecording(
            f"{path} is a recording of version {data[len(MAGIC) : start].hex() or 'none'}, this release reads "
            f"{VERSION}; replay it with the release that wrote it"
        )
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < start or not hmac.compare_digest(hashlib.sha256(body).digest(), digest):
        raise _corrupt(path, "does not match its digest")
    return memoryview(body)[start:]


def _records(body: memoryview, path: Path, limits: RecordingLimits) -> Iterator[bytes]:
    """Yield the records one by one; never more than one record and a chunk are held unpacked."""
    buffer = bytearray()
    for chunk in _unpacked(body, path, limits):
        buffer += chunk
        while len(buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(buffer[:_LENGTH_BYTES], "big")
            if length > limits.record:
                raise _too_large(str(path), limits)
            if len(buffer) < _LENGTH_BYTES + length:
                break
            yield bytes(buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
            del buffer[: _LENGTH_BYTES + length]
    if buffer:
        raise _corrupt(path, "ends within a record")


def _unpacked(body: memoryview, path: Path, limits: RecordingLimits) -> Iterator[bytes]:
    decompressor, total = zlib.decompressobj(), 0
    pending: bytes | memoryview = body
    while not decompressor.eof:
        try:
            chunk = decompressor.decompress(pending, _CHUNK)
        except zlib.error as error:
            raise _corrupt(path, f"cannot be unpacked ({error})") from None
        pending = decompressor.unconsumed_tail
        total += len(chunk)
        if total > limits.unpacked:
            raise _too_large(str(path), limits)
        if not chunk and not pending and not decompressor.eof:
            raise _corrupt(path, "ends within its compressed part")
        yield chunk
    if decompressor.unused_data:
        raise _corrupt(path, "goes on after its compressed part")


def _corrupt(path: Path, what: str) -> RecordingCorrupt:
    return RecordingCorrupt(f"{path} {what}: it was cut off or altered; copy it again or record the run again")


def _too_large(what: str, limits: RecordingLimits) -> RecordingTooLarge:
    return RecordingTooLarge(
        f"{what} is over a limit ({limits.file} bytes, {limits.unpacked} unpacked, {limits.record} in a record); "
        "record a part of the run with --to"
    )
