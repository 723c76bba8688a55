"""Hypothesis strategies for every message type, derived from the structs' annotations.

A new message type is covered by naming it in ``MESSAGES``; only rules that tie several fields together need a row
in ``_MENDS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from msgspec import inspect

from schemas.catalogue import MESSAGES
from schemas.enums import CircuitBreakerState, CommandType, Override, SeedOperation
from schemas.operator import OperatorDirective
from schemas.record import Column, ColumnSet, Message
from schemas.simic import PolicyUpdate
from schemas.tamiyo import (
    PAYLOAD_OWNER,
    AdaptationCommand,
    CommandCircuitBreaker,
    CommandOptimizerAdjustment,
    CommandSeedOperation,
    FieldReport,
)
from schemas.tolaria import SystemStatePacket
from schemas.urza import BlueprintParameterBounds

Values = dict[str, Any]

INT64 = st.integers(-(2**63), 2**63 - 1)
_TEXTS = st.text(max_size=8)


def messages(type_: type[Message]) -> st.SearchStrategy[Message]:
    """Any valid message of ``type_``, every optional field present or absent."""
    return _struct(inspect.type_info(type_))


def any_message() -> st.SearchStrategy[Message]:
    """Any valid message of any type of the stream table."""
    return st.sampled_from([spec.type for spec in MESSAGES.values()]).flatmap(messages)


def same(left: object, right: object) -> bool:
    """Whether two decoded values are equal, types included, where NaN equals NaN and -0.0 is not 0.0."""
    return _fingerprint(left) == _fingerprint(right)


def _fingerprint(value: Any) -> object:
    if isinstance(value, msgspec.Struct):
        return type(value), [_fingerprint(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, Column):
        return type(value), value.dtype, _fingerprint(value.tolist())
    if isinstance(value, dict):
        return {key: _fingerprint(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fingerprint(item) for item in value]
    return type(value), repr(value)


def plain(message: Message, *, nan: float | None = math.nan) -> Any:
    """``message`` as a publisher without this package has it: maps and lists, ``nan`` = not measured."""

    def column(value: Column) -> list[Any]:
        return [nan if item != item else item for item in value.tolist()]  # noqa: PLR0124  NaN alone differs from itself

    return msgspec.to_builtins(message, builtin_types=(bytes,), enc_hook=column)


def _struct(info: inspect.Type) -> st.SearchStrategy[Any]:
    assert isinstance(info, inspect.StructType)
    kind = info.cls
    fields = _columns(info) if issubclass(kind, ColumnSet) else _fields(info)
    mend = _MENDS.get(kind, lambda values: values)
    return fields.map(lambda values: kind(**mend(values)))


def _fields(info: inspect.StructType) -> st.SearchStrategy[Values]:
    required = {field.name: _value(field.type) for field in info.fields if field.required}
    optional = {field.name: _value(field.type) for field in info.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional)


def _columns(info: inspect.StructType) -> st.SearchStrategy[Values]:
    """Columns of one length; names are unique, as ids must be."""

    def of_length(length: int) -> st.SearchStrategy[Values]:
        by_name = {field.name: _column_field(field.type, length) for field in info.fields}
        required = {field.name for field in info.fields if field.required}
        return st.fixed_dictionaries(
            {name: by_name[name] for name in by_name if name in required},
            optional={name: by_name[name] for name in by_name if name not in required},
        )

    return st.integers(0, 4).flatmap(of_length)


def _column_field(info: inspect.Type, length: int) -> st.SearchStrategy[Any]:
    info = _bare(info)
    if isinstance(info, inspect.UnionType):
        return st.one_of([_column_field(member, length) for member in info.types])
    if isinstance(info, inspect.CustomType):
        return column_of(info.cls, length)
    if isinstance(info, inspect.ListType):
        return st.lists(_value(info.item_type), min_size=length, max_size=length, unique=True)
    return _value(info)


def column_of(kind: type[Column], length: int) -> st.SearchStrategy[Column]:
    """A column of ``kind`` with ``length`` elements, NaN and infinities among them where it holds floats."""
    dtype = kind.wire_dtype
    if dtype.kind == "f":
        element: st.SearchStrategy[Any] = st.floats(width=8 * dtype.itemsize)  # type: ignore[arg-type]  # 16 or 32
    else:
        element = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return st.lists(element, min_size=length, max_size=length).map(kind.of)


def _value(info: inspect.Type) -> st.SearchStrategy[Any]:
    info = _bare(info)
    return _BY_INFO[type(info)](info)


def _bare(info: inspect.Type) -> inspect.Type:
    return _bare(info.type) if isinstance(info, inspect.Metadata) else info


def _floats(info: Any) -> st.SearchStrategy[float]:
    bounded = info.ge is not None or info.le is not None
    return st.floats(info.ge, info.le, allow_nan=not bounded, allow_infinity=None if bounded else True)


def _integers(info: Any) -> st.SearchStrategy[int]:
    low = -(2**63) if info.ge is None else info.ge
    return st.integers(low, 2**63 - 1 if info.le is None else info.le)


_BY_INFO: dict[type, Callable[[Any], st.SearchStrategy[Any]]] = {
    inspect.NoneType: lambda _info: st.none(),
    inspect.BoolType: lambda _info: st.booleans(),
    inspect.IntType: _integers,
    inspect.FloatType: _floats,
    inspect.StrType: lambda info: st.text(min_size=info.min_length or 0, max_size=8),
    inspect.BytesType: lambda _info: st.binary(max_size=16),
    inspect.EnumType: lambda info: st.sampled_from(list(info.cls)),
    inspect.UnionType: lambda info: st.one_of([_value(member) for member in info.types]),
    inspect.ListType: lambda info: st.lists(_value(info.item_type), max_size=3),
    inspect.DictType: lambda info: st.dictionaries(_TEXTS, _value(info.value_type), max_size=3),
    inspect.StructType: _struct,
}


def _one_payload(values: Values) -> Values:
    """The payload of the command's type and no other; a target where one is needed."""
    owned = next((name for name, owner in PAYLOAD_OWNER.items() if owner is values["command_type"]), None)
    mended = {name: value for name, value in values.items() if name not in PAYLOAD_OWNER}
    if owned is not None:
        mended[owned] = values.get(owned) or _LEAST_PAYLOADS[owned]
    if values["command_type"] is CommandType.SEED:
        mended["target_seed_id"] = values.get("target_seed_id") or "seed-0"
    return mended


_LEAST_PAYLOADS: Values = {
    "seed_operation": CommandSeedOperation(operation=SeedOperation.CULL),
    "optimizer_adjustment": CommandOptimizerAdjustment(optimizer_id="sgd"),
    "circuit_breaker": CommandCircuitBreaker(desired_state=CircuitBreakerState.OPEN),
    "rollback_payload": {"to": "last"},
}


def _one_source(values: Values) -> Values:
    if values.get("payload") is None:
        return values | {"uri": values.get("uri") or "", "payload": None}
    return values | {"uri": None}


def _finite(field: str) -> Callable[[Values], Values]:
    def mend(values: Values) -> Values:
        numbers = values.get(field, {})
        return values | {field: {name: x if math.isfinite(x) else 0.0 for name, x in numbers.items()}}

    return mend


def _something_directed(values: Values) -> Values:
    given = {values.get("conservative"), values.get("inference_breaker")} - {None}
    return values if given else values | {"conservative": Override.ON}


def _one_run_id(values: Values) -> Values:
    given = values.get("training_run_id") is not None
    return values | {"training_run_id": values["run_id"]} if given else values


def _ordered(values: Values) -> Values:
    low, high = sorted(0.0 if math.isnan(values[name]) else values[name] for name in ("min_value", "max_value"))
    return values | {"min_value": low, "max_value": high}


#: Rules between fields, by the struct that checks them.
_MENDS: dict[type, Callable[[Values], Values]] = {
    AdaptationCommand: _one_payload,
    BlueprintParameterBounds: _ordered,
    CommandOptimizerAdjustment: _finite("hyperparameters"),
    CommandSeedOperation: _finite("parameters"),
    FieldReport: _finite("metrics"),
    OperatorDirective: _something_directed,
    PolicyUpdate: _one_source,
    SystemStatePacket: _one_run_id,
}
