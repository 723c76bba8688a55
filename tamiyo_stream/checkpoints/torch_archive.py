"""The ``.pt`` form: torch's zip of a pickle and one record per tensor, ``torch.load(weights_only=True)`` opens it.

Before torch sees the file its zip structure is held to what torch writes: known names, nothing compressed, every
checksum right; and the pickle has been read by :mod:`~tamiyo_stream.checkpoints.pickle_tree`.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tamiyo_stream.checkpoints.contents import MAX_TENSORS, Contents, TensorSpec, not_a_checkpoint, plain
from tamiyo_stream.checkpoints.pickle_tree import StoredTensor, read_pickle
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason

MAGIC = b"PK\x03\x04"
#: Key of the weights in the pickled dict; its other keys are the document.
WEIGHTS = "state_dict"
#: Torch writes six records besides the tensors.
MAX_ENTRIES = MAX_TENSORS + 6
#: Of the zip's directory: a thousand names of torch's take about 60 kB.
MAX_DIRECTORY_BYTES = 256 * 1024
MAX_PICKLE_BYTES = 8 * 1024 * 1024

_ENTRY = re.compile(
    r"(?P<prefix>[\w.-]{1,128})/"
    r"(?:data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,5})",
    re.ASCII,
)
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
#: What zipfile raises on damaged files.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, KeyError)


def write_archive(document: Mapping[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """Return the file. Equal content gives equal bytes: the document is in JSON's order of keys, names are sorted.

    ``document`` is plain JSON data.
    """
    # Pickle writes a reference where it meets one *object* again. Strings that JSON has just made are objects of
    # their own wherever they stand, whatever was shared in the process before.
    content = json.loads(json.dumps(document, sort_keys=True, allow_nan=False))
    names = json.loads(json.dumps(sorted(state)))
    # Clones, so that each tensor is a record of its own.
    content[WEIGHTS] = {name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in names}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def open_archive(data: bytes) -> Contents:
    """Return what ``data`` holds.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``, ``unsafe_pickle``, ``legacy_ffn``, or ``shapes`` for a tensor that
            is no whole record.
    """
    _check_end(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = _records(archive, len(data))
            if records["data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise not_a_checkpoint(f"data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
            damaged = archive.testzip()
            if damaged is not None:
                raise not_a_checkpoint(f"record {damaged!r} is damaged: its checksum differs")
            content = read_pickle(archive.read(records["data.pkl"]))
    except CheckpointRefused:
        raise
    except (*_ZIP_ERRORS, struct.error) as error:
        raise not_a_checkpoint(f"its zip structure is damaged ({error})") from None
    _refuse_bare_weights(content)
    weights = content.pop(WEIGHTS)
    sizes = {name.removeprefix("data/"): info.file_size for name, info in records.items()}
    specs = {name: _spec(name, tensor, sizes) for name, tensor in weights.items()}
    return Contents(plain(content), specs, lambda: _load(data, specs))


def _check_end(data: bytes) -> None:
    """Refuse a directory that would take much memory to read, and files with something after it."""
    if len(data) < _END.size or data[-_END.size : -_END.size + 4] != b"PK\x05\x06":
        raise not_a_checkpoint("it does not end as a zip does; it may be cut off")
    *_, entries, size, _, comment = _END.unpack(data[-_END.size :])
    locator = len(data) - _END.size - _END64_LOCATOR.size
    record = locator - _END64.size
    if record >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        *_, entries, size, _ = _END64.unpack(data[record:locator])
    if comment or entries > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise not_a_checkpoint(
            f"its zip directory has {entries} entries in {size} bytes; at most {MAX_ENTRIES} in "
            f"{MAX_DIRECTORY_BYTES} are read, and no comment"
        )


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's records by their name within its folder."""
    records: dict[str, zipfile.ZipInfo] = {}
    prefixes = set()
    for info in archive.infolist():
        match = _ENTRY.fullmatch(info.orig_filename)
        if match is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise not_a_checkpoint(
                f"zip entry {info.orig_filename[:80]!r} is none that torch.save writes: unknown name, compressed, "
                "or encrypted"
            )
        prefixes.add(match["prefix"])
        records[info.orig_filename.removeprefix(match["prefix"] + "/")] = info
    starts = [info.header_offset for info in records.values()]
    total = sum(info.file_size for info in records.values())
    if len(prefixes) != 1 or len(records) != len(archive.infolist()) or min(starts) != 0 or total > size:
        raise not_a_checkpoint("its zip entries repeat, overlap, or stand in several folders or behind other data")
    if "data.pkl" not in records:
        raise not_a_checkpoint("it has no data.pkl")
    return records


def _refuse_bare_weights(content: Any) -> None:
    if not isinstance(content, dict):
        raise not_a_checkpoint("its pickle is no dict")
    if isinstance(content.get(WEIGHTS), dict) and "format" in content:
        return
    state = next((value for value in content.values() if isinstance(value, dict) and _has_tensor(value)), content)
    if not _has_tensor(state):
        raise not_a_checkpoint("it has no weights")
    names = ", ".join([name for name, value in state.items() if isinstance(value, StoredTensor)][:3])
    raise CheckpointRefused(
        Reason.LEGACY_FFN,
        f"the file holds bare weights ({names[:200]}, …) without config, manifest and registries: a checkpoint of "
        "the legacy feed-forward policy, which cannot become a graph network; train tamiyo_gnn_v1 "
        "(docs/simic.md)",
    )


def _has_tensor(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, StoredTensor) for value in content.values())


def _spec(name: str, tensor: Any, sizes: Mapping[str, int]) -> TensorSpec:
    if not isinstance(tensor, StoredTensor):
        raise not_a_checkpoint(f"{name!r} is no tensor")
    storage, offset, shape, strides = tensor
    whole = offset == 0 and storage.elements == math.prod(shape)
    if not whole or any(
        stride != math.prod(shape[axis + 1 :])
        for axis, stride in enumerate(strides)
        if shape[axis] > 1  # an axis of one element is never stepped along
    ):
        raise CheckpointRefused(
            Reason.SHAPES, f"tensor {name!r} is a view of another one; save `tensor.detach().clone()`"
        )
    if sizes.get(storage.key) != storage.elements * storage.element_bytes:
        raise not_a_checkpoint(
            f"tensor {name!r} needs {storage.elements * storage.element_bytes} bytes, its record has "
            f"{sizes.get(storage.key)}"
        )
    return TensorSpec(storage.dtype, shape)


def _load(data: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    try:
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu", mmap=False)
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise not_a_checkpoint(f"torch cannot read it ({error})") from None
    state: dict[str, Tensor] = content[WEIGHTS]
    if {name: tuple(value.shape) for name, value in state.items()} != {
        name: spec.shape for name, spec in specs.items()
    }:
        raise not_a_checkpoint("torch reads other tensors from it than its pickle describes")
    return state
