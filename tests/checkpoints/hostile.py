"""Files that an attacker would send, and ways to damage one."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Mapping
from functools import cache

from tests.checkpoints.samples import sample_file

#: A file that appears where a pickle was executed; relative to the working directory.
CANARY = "executed"
_COMMAND = f"touch {CANARY}".encode()


def text(value: bytes) -> bytes:
    """Return the opcode that pushes ``value`` as a string."""
    return b"X" + struct.pack("<I", len(value)) + value


#: Pickles that run a shell command when a careless reader opens them, and others that are no plain data.
PICKLES: dict[str, bytes] = {
    "os.system by GLOBAL and REDUCE": b"\x80\x02cos\nsystem\n" + text(_COMMAND) + b"\x85R.",
    "posix.system in a dict": b"\x80\x02}(" + text(b"a") + b"cposix\nsystem\n" + text(_COMMAND) + b"\x85Ru.",
    "eval": b"\x80\x02cbuiltins\neval\n" + text(b"__import__('os').system('touch executed')") + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04" + text(b"os") + text(b"system") + b"\x93" + text(_COMMAND) + b"\x85R.",
    "INST": b"(S'touch executed'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text(_COMMAND) + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + text(_COMMAND) + b"\x85\x81.",
    "BUILD of a global": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "torch.load inside": b"\x80\x02ctorch\nload\n" + text(b"other.pt") + b"\x85R.",
    "getattr chain": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n\x86R.",
    "a call of a string": b"\x80\x02" + text(b"os.system") + text(_COMMAND) + b"\x85R.",
    "a call of a tensor's type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "extension code": b"\x80\x02\x82\x01.",
    "persistent id as text": b"Pfile:///etc/passwd\n.",
    "one list in itself": b"\x80\x02}" + text(b"a") + b"]q\x00h\x00as.",
    "one list in two places": b"\x80\x02}(" + text(b"a") + b"]q\x00" + text(b"b") + b"h\x00u.",
}


def archive_of(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of ``records``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return buffer.getvalue()


@cache
def sample_records() -> dict[str, bytes]:
    """Return the records of the sample archive by name."""
    with zipfile.ZipFile(io.BytesIO(sample_file(".pt"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(pickled: bytes) -> bytes:
    """Return the sample archive with another ``data.pkl``."""
    return archive_of(sample_records() | {"archive/data.pkl": pickled})


def with_records(**added: bytes) -> bytes:
    """Return the sample archive with more records; ``__`` in a name stands for a slash."""
    return archive_of(sample_records() | {name.replace("__", "/"): value for name, value in added.items()})


def renamed(old: str, new: str) -> bytes:
    """Return the sample archive with a record of another name."""
    return archive_of({new if name == old else name: value for name, value in sample_records().items()})


def flipped(rng: random.Random, data: bytes, *, within: int = 0) -> bytes:
    """Return ``data`` with one to eight bits turned over, in its first ``within`` bytes (0 = anywhere)."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(within or len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def spliced(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with a piece of it removed, doubled, zeroed or replaced by noise."""
    start = rng.randrange(len(data))
    length = rng.randint(1, 4096)
    piece = data[start : start + length]
    replacement = rng.choice([b"", piece * 2, bytes(len(piece)), rng.randbytes(len(piece))])
    return data[:start] + replacement + data[start + length :]


def truncated(rng: random.Random, data: bytes) -> bytes:
    """Return the beginning of ``data``."""
    return data[: rng.randrange(len(data))]
