"""Turns what msgpack and msgspec say about a payload into an :class:`~schemas.errors.EntryError`.

Both libraries say what is wrong but not all of where and what to do: these texts name field, value and fix.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from schemas.catalogue import Limits
from schemas.errors import EntryError, InvalidPayload, LimitExceeded, UndecodablePayload

_OVER_LIMIT = re.compile(r"(\d+) exceeds max_(\w+)_len")
#: msgpack's name of a type -> (field of Limits, what people call it, what it counts).
_LIMITED = {
    "str": ("string", "string", "bytes"),
    "bin": ("binary", "bin", "bytes"),
    "array": ("array", "list", "elements"),
    "map": ("map", "map", "keys"),
}
_PATH = re.compile(r" - at (?:`key` in )?`(\$[^`]*)`$")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING = re.compile(r"missing required field `(\w+)`")
_GOT = re.compile(r"got `(\w+)`")
_BOUND = re.compile(r"Expected `(int|float|str)`(?: of length)? ([<>]=) (\S+)")
_COMPARISONS: dict[str, Callable[[Any, float], bool]] = {">=": operator.ge, "<=": operator.le}
_ENUM = re.compile(r"Invalid enum value (\S+)")
#: msgspec's name of a type -> the type that msgpack unpacks to.
_PLAIN_TYPES: dict[str, type] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "bytes": bytes,
    "array": list,
    "object": dict,
    "null": type(None),
}
#: The contracts' own refusals name value and fix already.
_FIX = "; "
_ANY_KEY = "[...]"
_SHOWN_CHARACTERS = 60


def undecodable(error: Exception, limits: Limits) -> EntryError:
    """Return why bytes that made msgpack raise ``error`` are refused: truncated, foreign, or over a limit."""
    over = _OVER_LIMIT.match(str(error))
    if over is None:
        text = str(error) or type(error).__name__
        return UndecodablePayload(
            f"payload is not one whole msgpack value ({text}); send exactly one map", field="payload"
        )
    size, kind = int(over[1]), over[2]
    if kind == "ext":
        return extension_refused((size - 1) % 2**32)  # msgpack counts the type byte, in 32 bits
    field, what, unit = _LIMITED[kind]
    limit: int = getattr(limits, field)
    if size <= limit:
        return UndecodablePayload(
            f"payload ends inside a {what} that claims {size} {unit}; send the whole payload", field="payload"
        )
    return LimitExceeded(
        f"payload holds a {what} of {size} {unit}, limit {limit}; send less at once", field="payload"
    )


def extension_refused(size: int) -> UndecodablePayload:
    """Return the refusal of a msgpack extension type of ``size`` bytes."""
    return UndecodablePayload(
        f"payload holds a msgpack extension type ({size} bytes); send maps, lists, strings, numbers and bin only",
        field="payload",
    )


def invalid(name: str, error: msgspec.ValidationError, value: object) -> InvalidPayload:
    """Return why ``value``, unpacked from a ``name`` message, does not fit its contract."""
    text = str(error)
    at = _PATH.search(text)
    steps = [_step(*groups) for groups in _STEP.findall(at[1])] if at else []
    path, culprit = _locate(value, steps, _culprits(text)) or (at[1][1:] if at else "", None)
    missing = _MISSING.search(text)
    if missing:
        path += f".{missing[1]}"
    problem = text[: at.start()] if at else text
    if _FIX in problem:
        return InvalidPayload(f"{name}: ${path}: {problem}", field=f"${path}")
    shown = "" if culprit is None or missing else f" (value {_shown(culprit)})"
    return InvalidPayload(
        f"{name}: ${path}: {problem}{shown}; send it as docs/asyncapi.yaml says", field=f"${path}"
    )


def _step(key: str, index: str, any_key: str) -> str | int:
    return key or any_key or int(index)


def _culprits(text: str) -> Callable[[object], bool]:
    """Return which values msgspec's ``text`` can be about: under ``[...]`` it does not say which key's it is."""
    if found := _GOT.search(text):
        got = _PLAIN_TYPES.get(found[1])
        return lambda value: type(value) is got
    if found := _MISSING.search(text):
        name = found[1]
        return lambda value: isinstance(value, dict) and name not in value
    if found := _BOUND.search(text):
        holds, bound = _COMPARISONS[found[2]], _number(found[3])
        return lambda value: not holds(len(value) if isinstance(value, str) else value, bound)
    if found := _ENUM.search(text):
        number = found[1]
        return lambda value: str(value) == number
    return lambda _value: False


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)  # an int is exact beyond 2**53


def _locate(
    value: object, steps: Sequence[str | int], is_culprit: Callable[[object], bool]
) -> tuple[str, object] | None:
    """Return path and value of the first element under ``steps`` that is a culprit."""
    if not steps:
        return ("", value) if is_culprit(value) else None
    for name, child in _children(value, steps[0]):
        found = _locate(child, steps[1:], is_culprit)
        if found:
            return name + found[0], found[1]
    return None


def _children(value: object, step: str | int) -> Iterable[tuple[str, object]]:
    if step == _ANY_KEY:
        if isinstance(value, dict):
            return ((f"[{key!r}]", child) for key, child in value.items())
        return ((f"[{index}]", child) for index, child in enumerate(value)) if isinstance(value, list) else ()
    if isinstance(value, dict) and step in value:
        return ((f".{step}", value[step]),)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return ((f"[{step}]", value[step]),)
    return ()


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return f"a {'map' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
