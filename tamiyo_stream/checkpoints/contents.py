"""What a checkpoint file holds before anything of it is believed: its document and a list of its tensors.

The document is plain JSON data. Both file forms come to this, and no tensor is read to get there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason

#: Half a character: no file that is UTF-8 holds it, and nothing that is printed or hashed may.
_SURROGATE = re.compile("[\ud800-\udfff]")
#: A checkpoint of the network has about 600.
MAX_TENSORS = 1000
MAX_AXES = 8
MAX_ELEMENTS = 2**32
#: The manifest is the deepest part of the document.
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape that a file says a tensor has."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """``load`` reads the tensors; call it once ``tensors`` is known to be what one expects."""

    document: dict[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorSpec] = field(repr=False)
    load: Callable[[], dict[str, Tensor]] = field(repr=False)


def plain(value: Any, depth: int = 0) -> Any:
    """Return ``value`` where it is plain JSON data: finite, not deep, strings that are text.

    Raises:
        CheckpointRefused: ``not_a_checkpoint``.
    """
    if depth > MAX_DEPTH:
        raise not_a_checkpoint(f"its document is nested deeper than {MAX_DEPTH}")
    if type(value) is dict and all(type(key) is str for key in value):
        return {_text(key): plain(item, depth + 1) for key, item in value.items()}
    if type(value) is list:
        return [plain(item, depth + 1) for item in value]
    if type(value) is str:
        return _text(value)
    if value is None or type(value) in {bool, int} or (type(value) is float and math.isfinite(value)):
        return value
    raise not_a_checkpoint(f"its document holds a {type(value).__name__} that is no JSON data")


def is_shape(numbers: Any) -> bool:
    """Return whether ``numbers`` can be the axes of a tensor: few, and no product of them takes long."""
    return (
        isinstance(numbers, tuple | list)
        and len(numbers) <= MAX_AXES
        and all(type(number) is int and 0 <= number < MAX_ELEMENTS for number in numbers)
    )


def not_a_checkpoint(detail: str) -> CheckpointRefused:
    """Return the refusal of a file that is none of ours, or damaged."""
    return CheckpointRefused(
        Reason.NOT_A_CHECKPOINT,
        f"the file is no checkpoint of ours: {detail}; write it with tamiyo_stream.checkpoints.writing",
    )


def _text(value: str) -> str:
    if _SURROGATE.search(value):
        raise not_a_checkpoint("its document holds a string that is no text")
    return value
