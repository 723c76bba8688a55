"""Base types of the wire contracts: records, annotated scalars and numeric columns.

A column is one telemetry channel for all nodes of a type (struct of arrays). On the wire it is a msgpack
``bin`` of little-endian numbers, or a plain list; in memory a read-only NumPy array that shares the entry's bytes.
NaN in a float column means "not measured"; 0.0 is a value (design §4).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

import msgspec
import numpy as np
from msgspec import Meta


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False, omit_defaults=True):
    """A part of a message. Unknown fields are ignored when read; defaults are left out when written."""


class Message(Record, frozen=True, kw_only=True, eq=False, omit_defaults=True):
    """A message of the stream table. ``version`` is the schema version of its payload."""

    version: Annotated[int, Meta(ge=1, le=1, description="Schema version of the payload")] = 1


def doc(description: str, unit: str = "", *, source: str = "") -> Meta:
    """Describe a field: meaning, unit, and the requirement it comes from. Goes into AsyncAPI."""
    extra = {key: value for key, value in (("x-unit", unit), ("x-source", source)) if value}
    return Meta(description=description, extra_json_schema=extra or None)


TimestampNs = Annotated[int, Meta(ge=0, description="Unix time", extra_json_schema={"x-unit": "ns"})]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Identifier = Annotated[str, Meta(min_length=1, max_length=200)]


class Column(np.ndarray[tuple[int], np.dtype[Any]]):
    """A numeric column of fixed dtype. Subclasses fix ``wire_dtype``.

    Build one with :meth:`of`; the codec builds one from entry bytes without copying.
    """

    wire_dtype: ClassVar[np.dtype[Any]]

    @classmethod
    def of(cls, values: Any) -> Self:
        """Return ``values`` (any 1-d array or list of numbers, None for missing floats) as this column."""
        return np.ascontiguousarray(values, dtype=cls.wire_dtype).reshape(-1).view(cls)

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """Return the column held in msgpack ``bin`` (zero-copy, read-only) or in a plain list.

        Raises:
            ValueError: not bytes or a list of numbers, or bytes that are no whole number of elements.
        """
        if isinstance(value, bytes | bytearray | memoryview):
            size = memoryview(value).nbytes
            if size % cls.wire_dtype.itemsize:
                raise ValueError(
                    f"{size} bytes are no whole number of {cls.wire_dtype.name} elements; "
                    f"send {cls.wire_dtype.itemsize} little-endian bytes per element"
                )
            return np.frombuffer(value, dtype=cls.wire_dtype).view(cls)
        if isinstance(value, list):
            return cls._from_list(value)
        raise ValueError(f"Expected bin or list of numbers, got {type(value).__name__}")

    @classmethod
    def _from_list(cls, values: list[object]) -> Self:
        floating = cls.wire_dtype.kind == "f"
        for position, item in enumerate(values):
            wrong = isinstance(item, bool) or not isinstance(item, int | float | None)
            if wrong or (not floating and not isinstance(item, int)):
                raise ValueError(f"Expected {cls.wire_dtype.name} at position {position}, got {item!r}")
        try:
            return cls.of(values)
        except OverflowError as error:
            raise ValueError(f"A list element does not fit {cls.wire_dtype.name}: {error}") from None


class Float32Column(Column):
    """Little-endian float32; NaN = not measured."""

    wire_dtype = np.dtype("<f4")


class Float16Column(Column):
    """Little-endian float16, for ratios in [0, 1]; NaN = not measured."""

    wire_dtype = np.dtype("<f2")


class Int32Column(Column):
    """Little-endian int32, for node positions."""

    wire_dtype = np.dtype("<i4")


class UInt8Column(Column):
    """Unsigned bytes, for small enumerations and flags; 0 = unknown."""

    wire_dtype = np.dtype("u1")


def require_equal_lengths(record: Record, *, length: int | None = None) -> None:
    """Check that every column and list given in ``record`` has the same length.

    Raises:
        ValueError: naming the odd column and both lengths.
    """
    expected, first = length, "the declared length"
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if not isinstance(value, np.ndarray | list | tuple):
            continue
        if expected is None:
            expected, first = len(value), f"`{name}`"
        elif len(value) != expected:
            raise ValueError(
                f"column `{name}` has {len(value)} elements but {first} has {expected}; "
                "send one element per node in the blueprint's order"
            )
