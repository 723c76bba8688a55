"""Base types of the wire contracts: records, annotated scalars and numeric columns.

A column is one telemetry channel for all nodes of a type (struct of arrays). On the wire it is a msgpack
``bin`` of little-endian numbers, or a plain list; in memory a read-only NumPy array that shares the entry's bytes.
NaN in a float column means "not measured"; 0.0 is a value (design §4). Scalars that were not measured are absent
or nil, also inside maps such as ``training_metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import force_setattr

INT64_MAX = 2**63 - 1


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False, omit_defaults=True):
    """A part of a message. Unknown fields are ignored when read; defaults are left out when written."""


class Message(Record, frozen=True, kw_only=True, eq=False, omit_defaults=True):
    """A message of the stream table. ``version`` is the schema version of its payload."""

    version: Annotated[int, Meta(ge=1, le=1, description="Schema version of the payload")] = 1


def doc(description: str, unit: str = "", *, source: str = "") -> Meta:
    """Describe a field: meaning, unit, and the requirement it comes from. Goes into AsyncAPI."""
    extra = {key: value for key, value in (("x-unit", unit), ("x-source", source)) if value}
    return Meta(description=description, extra_json_schema=extra or None)


TimestampNs = Annotated[int, Meta(ge=0, le=INT64_MAX, description="Unix time", extra_json_schema={"x-unit": "ns"})]
#: A counter or a 0-based position: Leyline's unsigned integers, as far as every reader can hold them.
Count = Annotated[int, Meta(ge=0, le=INT64_MAX)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Identifier = Annotated[str, Meta(min_length=1, max_length=200)]


class Column(np.ndarray[tuple[int], np.dtype[Any]]):
    """A numeric column of fixed dtype. Subclasses fix ``wire_dtype``.

    Build one with :meth:`of`; the codec builds one from entry bytes without copying.
    """

    wire_dtype: ClassVar[np.dtype[Any]]

    @classmethod
    def of(cls, values: Any) -> Self:
        """Return ``values`` (any 1-d array or list of numbers, None for missing floats) as this column.

        Floats out of range become infinite, as they do on every publisher's side.

        Raises:
            ValueError: an integer column cannot hold a value: a fraction, NaN, None, or out of range.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                column = np.ascontiguousarray(values, dtype=cls.wire_dtype).reshape(-1)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"a value does not fit {cls.wire_dtype.name}: {error}") from None
        if cls.wire_dtype.kind != "f" and not np.array_equal(column, np.asarray(values).reshape(-1)):
            raise ValueError(f"a value does not fit {cls.wire_dtype.name}; send whole numbers in its range")
        return column.view(cls)

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """Return the column held in msgpack ``bin`` (zero-copy, read-only) or in a plain list.

        Raises:
            ValueError: not bytes or a list of numbers, or bytes that are no whole number of elements.
        """
        if isinstance(value, bytes):
            if len(value) % cls.wire_dtype.itemsize:
                raise ValueError(
                    f"{len(value)} bytes are no whole number of {cls.wire_dtype.name} elements; "
                    f"send {cls.wire_dtype.itemsize} little-endian bytes per element"
                )
            return np.frombuffer(value, dtype=cls.wire_dtype).view(cls)
        if isinstance(value, list):
            return cls._from_list(value)
        raise ValueError(
            f"expected {cls.wire_dtype.name} column, got {type(value).__name__}; send bin or a list of numbers"
        )

    @classmethod
    def _from_list(cls, values: list[object]) -> Self:
        allowed = _LIST_ELEMENTS[cls.wire_dtype.kind]
        if not allowed.issuperset(map(type, values)):
            position = next(index for index, item in enumerate(values) if type(item) not in allowed)
            raise ValueError(
                f"expected {cls.wire_dtype.name} at position {position}, got {values[position]!r}; send a number"
            )
        column = cls.of(values)
        column.flags.writeable = False
        return column


#: Types a plain list may hold, by dtype kind. A bool is no number; None is a float that was not measured.
_LIST_ELEMENTS: dict[str, frozenset[type]] = {
    "f": frozenset({float, int, type(None)}),
    "i": frozenset({int}),
    "u": frozenset({int}),
}


class Float32Column(Column):
    """Little-endian float32; NaN = not measured."""

    wire_dtype = np.dtype("<f4")


class Float16Column(Column):
    """Little-endian float16, for ratios and short times: three digits up to 65 504; NaN = not measured."""

    wire_dtype = np.dtype("<f2")


class Int32Column(Column):
    """Little-endian int32, for node positions."""

    wire_dtype = np.dtype("<i4")


class UInt8Column(Column):
    """Unsigned bytes, for small enumerations and flags; 0 = unknown."""

    wire_dtype = np.dtype("u1")


class ColumnSet(Record, frozen=True, kw_only=True):
    """Struct of arrays: columns and lists of one length, element *i* of each describing node or edge *i*.

    Any array or list given for a column is stored in the column's own dtype, so that it cannot be written with the
    wrong one.

    Raises:
        ValueError: values that do not fit the dtype, or columns of different lengths.
    """

    def __post_init__(self) -> None:
        for name, column_type in column_types(type(self)).items():
            value = getattr(self, name)
            if value is not None and (type(value) is not column_type or value.dtype != column_type.wire_dtype):
                force_setattr(self, name, column_type.of(value))
        require_equal_lengths(self)


@cache
def column_types(record: type[Record]) -> dict[str, type[Column]]:
    """Return the column type of every column field of ``record``."""
    return {
        name: column
        for name, hint in get_type_hints(record).items()
        for column in (hint, *get_args(hint))
        if isinstance(column, type) and issubclass(column, Column)
    }


def require_equal_lengths(record: Record) -> None:
    """Check that every column and list given in ``record`` has the same length.

    Raises:
        ValueError: naming the odd column and both lengths.
    """
    expected, first = -1, ""
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if not isinstance(value, np.ndarray | list | tuple):
            continue
        if not first:
            expected, first = len(value), name
        elif len(value) != expected:
            raise ValueError(
                f"column `{name}` has {len(value)} elements but `{first}` has {expected}; "
                "send one element per node in the blueprint's order"
            )


def require_finite(values: Mapping[str, float], field: str) -> None:
    """Check that no value is NaN or infinite: what acts on a run or trains a policy must be a number.

    Raises:
        ValueError: naming the key and its value.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{field}[{name!r}] is {value}; leave the key out where there is no finite value")
