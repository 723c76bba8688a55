"""AsyncAPI 3 document of the wire contracts, generated from the stream table and the docstrings (design §4).

``docs/asyncapi.yaml`` is what :func:`render_asyncapi` returns; a test keeps it current.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict
from enum import IntEnum
from typing import Any

import msgspec
import yaml  # type: ignore[import-untyped]  # no stubs among the project's dependencies

from schemas import enums
from schemas.catalogue import MESSAGES, MessageSpec, Stream
from schemas.entry import MAX_FIELD_BYTES, SCHEMA_VERSION, SIGNED_FIELDS
from schemas.partitions import ORDERED
from schemas.record import Column

Node = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_MESSAGES = "#/components/messages/"
#: The dead letter's entries are refused entries of any type, not a message of their own.
_DEAD_LETTER = "DeadLetter"
_CONTENT_TYPE = "application/vnd.msgpack"

_INFO = """\
What travels between Tamiyo and the platform over Redis Streams. `send` and `receive` are from Tamiyo's view.

An entry's fields are the message headers below plus `payload`: one msgpack map. Unknown keys of the map are
ignored. A key whose value is nil is as good as absent; 0.0 is a value. No extension types. Columns are
msgpack `bin` of little-endian numbers, or plain lists; NaN (nil in a list) = not measured. Integers are
accepted where floats are named, nothing else is converted.

`signature` is base64 of HMAC-SHA256 over `type`, `v`, `id`, `kid` and `payload`, each preceded by its length
as eight bytes, big-endian. A reader with a key refuses entries that are unsigned, of an unknown key or
altered, before it unpacks them. Limits (`x-limits`: bytes of payload, string and binary, elements of arrays
and maps, lists and maps in all, nesting) are checked before or while unpacking.
"""

_STREAM_TEXTS: dict[Stream, str] = {
    Stream.STATE: "State of each training step, from Tolaria.",
    Stream.SEEDS: "Seeds of a run, from Kasmina.",
    Stream.SAFETY: "Safety sheets, from Urabrask.",
    Stream.BLUEPRINTS: "Host models and kernels, from Urza.",
    Stream.POLICY: "Policies and registry snapshots, from Simic.",
    Stream.TELEMETRY: "Telemetry of every subsystem, and Tamiyo's consolidated view of it.",
    Stream.COMMANDS: "One decision per training step.",
    Stream.REPORTS: "What became of the commands, for Simic.",
    Stream.EMERGENCY: "HIGH and CRITICAL telemetry, emergency commands, Tolaria's emergency signals.",
    Stream.DEAD_LETTER: "Entries that were refused, with the reason.",
}

_HEADERS: dict[str, Node] = {
    "type": {"type": "string", "description": "Name of the message"},
    "v": {"type": "string", "const": SCHEMA_VERSION, "description": "Version of the schema"},
    "id": {"type": "string", "minLength": 1, "description": "The producer's event id: deduplication key"},
    "kid": {"type": "string", "description": "Id of the key that signed; needed where a secret is configured"},
    "signature": {
        "type": "string",
        "contentEncoding": "base64",
        "description": "HMAC-SHA256, base64; needed where a secret is configured",
    },
    "traceparent": {"type": "string", "description": "W3C trace context"},
    "tracestate": {"type": "string", "description": "W3C trace context"},
}


def render_asyncapi() -> str:
    """Return the AsyncAPI 3.0 document of all streams and messages as YAML. The same text on every call."""
    text: str = yaml.dump(
        _document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )
    return text


def _document() -> Node:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tamiyo stream",
            "version": SCHEMA_VERSION,
            "description": _INFO,
            "license": {"name": "MIT"},
        },
        "defaultContentType": _CONTENT_TYPE,
        "servers": {"redis": {"host": "localhost:6379", "protocol": "redis", "description": "Redis 6.2 or newer"}},
        "channels": {stream.name.lower(): _channel(stream) for stream in Stream},
        "operations": _operations(),
        "components": {
            "messages": {spec.name: _message(spec) for spec in MESSAGES.values()} | {_DEAD_LETTER: _dead_letter()},
            "schemas": _payload_schemas() | {"EntryHeaders": _entry_headers()},
        },
    }


def _channel(stream: Stream) -> Node:
    channel: Node = {
        "address": stream.value,
        "description": _STREAM_TEXTS[stream],
        "messages": {name: {"$ref": _MESSAGES + name} for name in _names_on(stream)},
    }
    if stream in ORDERED:
        channel["x-partitions"] = {
            "rule": "crc32(run_id as UTF-8) mod P",
            "address": f"{stream.value}.{{0}} for partition 0, braces included, where P > 1",
            "default": 1,
        }
    return channel


def _names_on(stream: Stream) -> list[str]:
    if stream is Stream.DEAD_LETTER:
        return [_DEAD_LETTER]
    return [spec.name for spec in MESSAGES.values() if stream in spec.streams]


def _operations() -> Node:
    operations: Node = {}
    for stream in Stream:
        received = [spec.name for spec in MESSAGES.values() if stream in spec.received_on]
        sent = [spec.name for spec in MESSAGES.values() if stream in spec.sent_on]
        if stream is Stream.DEAD_LETTER:
            sent = [_DEAD_LETTER]
        for action, names in (("receive", received), ("send", sent)):
            if names:
                operations[f"{action}_{stream.name.lower()}"] = _operation(action, stream, names)
    return operations


def _operation(action: str, stream: Stream, names: list[str]) -> Node:
    channel = f"#/channels/{stream.name.lower()}"
    return {
        "action": action,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in names],
    }


def _message(spec: MessageSpec) -> Node:
    return {
        "name": spec.name,
        "title": spec.name,
        "summary": _prose(spec.type.__doc__ or "").partition("\n")[0],
        "contentType": _CONTENT_TYPE,
        "headers": {
            "allOf": [{"$ref": f"{_SCHEMAS}EntryHeaders"}, {"properties": {"type": {"const": spec.name}}}],
        },
        "payload": {"$ref": _SCHEMAS + spec.name},
        "x-limits": asdict(spec.limits),
    }


def _dead_letter() -> Node:
    return {
        "name": _DEAD_LETTER,
        "title": _DEAD_LETTER,
        "summary": "A refused entry: its fields as they came, and in `dead_letter_…` fields why and whence.",
        "contentType": _CONTENT_TYPE,
        "payload": {"description": "Payload of the refused entry, unchanged; it need not be msgpack."},
    }


def _entry_headers() -> Node:
    return {
        "type": "object",
        "description": "Fields of a stream entry beside `payload`.",
        "properties": {name: schema | {"maxLength": MAX_FIELD_BYTES} for name, schema in _HEADERS.items()},
        "required": ["type", "v", "id"],
        "x-signed": [*SIGNED_FIELDS, "payload"],
    }


def _payload_schemas() -> Node:
    types = [spec.type for spec in MESSAGES.values()]
    _, components = msgspec.json.schema_components(
        types, schema_hook=lambda kind: {"$ref": _SCHEMAS + kind.__name__}, ref_template=_SCHEMAS + "{name}"
    )
    described = {name: _rewrite(schema) for name, schema in components.items()}
    for name in described.keys() & vars(enums).keys():
        described[name] = _enum_schema(getattr(enums, name))
    columns = {column.__name__: _column_schema(column) for column in Column.__subclasses__()}
    return dict(sorted((described | columns).items()))


def _rewrite(node: Any) -> Any:
    """Return ``node`` with docstrings as prose, bytes as binary, and no default of what is optional anyway."""
    if isinstance(node, list):
        return [_rewrite(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _rewrite(value) for key, value in node.items()}
    if isinstance(result.get("description"), str):
        result["description"] = _prose(result["description"])
    if result.get("contentEncoding") == "base64":
        del result["contentEncoding"]
        result["format"] = "binary"
    if result.get("default", ...) is None:
        del result["default"]
    return result


def _enum_schema(enum: type[IntEnum]) -> Node:
    return {
        "title": enum.__name__,
        "description": _prose(enum.__doc__ or ""),
        "type": "integer",
        "enum": [member.value for member in enum],
        "x-enum-varnames": [member.name for member in enum],
    }


def _column_schema(column: type[Column]) -> Node:
    floating = column.wire_dtype.kind == "f"
    item = {"type": ["number", "null"]} if floating else {"type": "integer"}
    return {
        "title": column.__name__,
        "description": _prose(column.__doc__ or ""),
        "x-dtype": f"{column.wire_dtype.name}, little-endian",
        "oneOf": [{"type": "string", "format": "binary"}, {"type": "array", "items": item}],
    }


_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_RAISES = re.compile(r"Raises:\n\s+ValueError: (.*)", re.DOTALL)


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: no reStructuredText roles, what raises is what is refused."""
    text = _ROLE.sub(r"`\1`", inspect.cleandoc(docstring)).replace("``", "`")
    return _RAISES.sub(lambda found: "Refused: " + " ".join(found[1].split()), text)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no stubs
    """Writes every node in full, and texts of several lines as blocks."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text_node(dumper: _Dumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)
