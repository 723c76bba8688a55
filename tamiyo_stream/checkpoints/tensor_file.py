"""The ``.safetensors`` form: a JSON header and the tensors' bytes, nothing that could be executed.

Eight bytes give the header's length; the header gives type, shape and place of every tensor, and holds the
document in its metadata. Any safetensors library reads it (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.checkpoints.contents import MAX_TENSORS, Contents, TensorSpec, is_shape, not_a_checkpoint, plain
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason

#: The format allows 100 MB; a header that large is an attack.
MAX_HEADER_BYTES = 1024 * 1024
_METADATA = "__metadata__"
_DOCUMENT = "tamiyo_checkpoint"
#: Type in the header -> name of the type and bytes per element. The network has no other.
_TYPES = {"F32": ("float32", 4)}
#: Known types that a checkpoint of the network does not have, refused as ``dtypes`` instead of as damage.
_OTHER_TYPES = {"F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def write_tensor_file(document: Mapping[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """Return the file; ``state`` is float32 on the CPU. Equal content gives equal bytes.

    Raises:
        ValueError: the header is longer than readers accept: write the ``.pt`` form.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    header: dict[str, Any] = {_METADATA: {_DOCUMENT: text, "format": "pt"}}
    position = 0
    for name, value in sorted(state.items()):
        end = position + value.numel() * value.element_size()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER_BYTES:
        raise ValueError(
            f"the header of a .safetensors checkpoint would be {len(encoded)} bytes, readers accept "
            f"{MAX_HEADER_BYTES}; write it as .pt"
        )
    values = [value.contiguous().numpy().astype("<f4", copy=False).tobytes() for _, value in sorted(state.items())]
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *values])


def looks_like_tensor_file(data: bytes) -> bool:
    """Return whether ``data`` begins as the form does."""
    return data[8:9] == b"{"


def open_tensor_file(data: bytes) -> Contents:
    """Return what ``data`` holds.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``; ``load`` raises ``dtypes`` for what is not float32.
    """
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise not_a_checkpoint(
            f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read, and the file has {len(data)}"
        )
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_once)
        document = _document(header.pop(_METADATA))
        places = {name: _place(name, entry) for name, entry in header.items()}
    except CheckpointRefused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_a_checkpoint(f"its header is damaged ({type(error).__name__}: {str(error)[:200]})") from None
    if len(places) > MAX_TENSORS:
        raise not_a_checkpoint(f"it has {len(places)} tensors, at most {MAX_TENSORS} are read")
    position = 0
    for _, begin, end in sorted(places.values(), key=lambda place: place[1:]):
        if begin != position:
            raise not_a_checkpoint(f"its tensors overlap or leave a gap at byte {position}")
        position = end
    if 8 + length + position != len(data):
        raise not_a_checkpoint(
            f"its tensors take {position} bytes, the file has {len(data) - 8 - length} for them"
        )
    specs = {name: spec for name, (spec, *_) in places.items()}
    return Contents(document, specs, lambda: _load(memoryview(data)[8 + length :], places))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key stands there twice")
    return entries


def _document(metadata: Any) -> dict[str, Any]:
    document = plain(json.loads(metadata[_DOCUMENT]))
    if not isinstance(document, dict):
        raise TypeError("the document is no object")
    return document


def _place(name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has other fields than dtype, shape and data_offsets")
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    dtype, element_bytes = _TYPES.get(entry["dtype"]) or (entry["dtype"], _OTHER_TYPES[entry["dtype"]])
    if not is_shape(shape) or not is_shape([begin, end]):
        raise ValueError(f"tensor {name!r} has no valid shape")
    if end - begin != math.prod(shape) * element_bytes:
        raise ValueError(f"tensor {name!r} has another size than its shape")
    return TensorSpec(dtype, tuple(shape)), begin, end


def _load(data: memoryview, places: Mapping[str, tuple[TensorSpec, int, int]]) -> dict[str, Tensor]:
    other = next((name for name, (spec, *_) in places.items() if spec.dtype != "float32"), None)
    if other is not None:
        raise CheckpointRefused(Reason.DTYPES, f"tensor {other!r} is not float32; store float32 weights")
    values = torch.from_numpy(np.frombuffer(bytearray(data), "<f4").astype(np.float32, copy=False))
    return {name: values[begin // 4 : end // 4].reshape(spec.shape) for name, (spec, begin, end) in places.items()}
