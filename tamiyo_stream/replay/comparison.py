"""Two commands on the same step, field by field; what is unique to each command is left aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.policy.signature import KEY_ID, SIGNATURE

#: Fields that two commands of equal content do not share.
_UNIQUE = frozenset({"command_id", "issued_at"})
_UNIQUE_ANNOTATIONS = frozenset({SIGNATURE, KEY_ID})

#: Field -> its value on either side; None where it is not there.
Differences = dict[str, tuple[Any, Any]]


def differences(one: AdaptationCommand | None, other: AdaptationCommand | None) -> Differences:
    """Return the fields that differ; annotations as ``annotations.<name>``."""
    left, right = _content(one), _content(other)
    names = dict.fromkeys([*left, *right])
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _content(command: AdaptationCommand | None) -> Mapping[str, Any]:
    if command is None:
        return {}
    fields: dict[str, Any] = msgspec.to_builtins(command, enc_hook=repr)
    annotations = fields.pop("annotations", {})
    fields["command_type"] = command.command_type.name
    return {
        **{name: value for name, value in fields.items() if name not in _UNIQUE},
        **{f"annotations.{name}": text for name, text in annotations.items() if name not in _UNIQUE_ANNOTATIONS},
    }
