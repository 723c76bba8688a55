"""``docs/asyncapi.yaml`` is current, and a sound AsyncAPI 3 document of every stream and message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from schemas import enums
from schemas.asyncapi import render_asyncapi
from schemas.catalogue import MESSAGES, MessageSpec, Stream, messages_on
from schemas.record import Column

PUBLISHED = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(render_asyncapi())
SCHEMAS: dict[str, dict[str, Any]] = DOCUMENT["components"]["schemas"]
EVERY_MESSAGE = pytest.mark.parametrize("spec", MESSAGES.values(), ids=MESSAGES)
ENUMS = [kind for name, kind in vars(enums).items() if name in SCHEMAS]


def test_the_published_document_is_current():
    assert PUBLISHED.read_text(encoding="utf-8") == render_asyncapi(), (
        "write it again: tamiyo-stream schema export"
    )


def test_the_document_is_an_asyncapi_3_document():
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    assert DOCUMENT.keys() <= {
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }


def test_every_component_has_a_legal_key():
    keys = [key for kind in DOCUMENT["components"].values() for key in kind]
    assert keys
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", key) for key in keys)


def test_every_reference_resolves():
    references = [node["$ref"] for node in _nodes(DOCUMENT) if "$ref" in node]
    assert references
    for reference in references:
        assert _resolve(reference) is not None, reference


def test_every_schema_is_used():
    used = {node["$ref"].rpartition("/")[2] for node in _nodes(DOCUMENT) if "$ref" in node}
    assert SCHEMAS.keys() <= used


@pytest.mark.parametrize("stream", Stream)
def test_every_stream_is_a_channel_with_its_messages(stream: Stream):
    channel = DOCUMENT["channels"][stream.name.lower()]
    assert channel["address"] == stream.value
    assert channel["description"]
    expected = {spec.name for spec in messages_on(stream)} or {"DeadLetter"}
    assert channel["messages"].keys() == expected


def test_operations_are_seen_from_tamiyo():
    for stream in Stream:
        received = {spec.name for spec in MESSAGES.values() if stream in spec.received_on}
        sent = {spec.name for spec in MESSAGES.values() if stream in spec.sent_on}
        assert _operated("receive", stream) == received
        assert _operated("send", stream) == (sent if stream is not Stream.DEAD_LETTER else {"DeadLetter"})


def test_an_operation_names_messages_of_its_channel():
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{operation['channel']['$ref']}/messages/")


@EVERY_MESSAGE
def test_every_message_has_payload_headers_and_limits(spec: MessageSpec):
    message = DOCUMENT["components"]["messages"][spec.name]
    assert message["payload"] == {"$ref": f"#/components/schemas/{spec.name}"}
    assert message["contentType"] == "application/vnd.msgpack"
    assert message["headers"]["allOf"][1]["properties"]["type"]["const"] == spec.name
    assert message["x-limits"] == {
        name: getattr(spec.limits, name)
        for name in ("payload", "array", "map", "string", "binary", "containers", "nesting")
    }


def test_the_headers_are_the_fields_of_an_entry():
    headers = SCHEMAS["EntryHeaders"]
    assert list(headers["properties"]) == ["type", "v", "id", "kid", "signature", "traceparent", "tracestate"]
    assert headers["required"] == ["type", "v", "id"]
    assert headers["x-signed"] == ["type", "v", "id", "kid", "payload"]


@EVERY_MESSAGE
def test_required_fields_are_listed(spec: MessageSpec):
    required = [field.encode_name for field in msgspec.structs.fields(spec.type) if field.required]
    assert SCHEMAS[spec.name]["required"] == required
    assert SCHEMAS[spec.name]["properties"].keys() == set(spec.type.__struct_fields__)


def test_everything_is_described():
    for name, schema in SCHEMAS.items():
        assert schema["description"], name
        for field, node in schema.get("properties", {}).items():
            assert "description" in node or any("$ref" in inner for inner in _nodes(node)), f"{name}.{field}"


def test_descriptions_are_prose():
    for node in _nodes(DOCUMENT):
        text = node.get("description")
        assert not isinstance(text, str) or not re.search(r":\w+:`|``|Raises:", text)


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_an_enumeration_names_its_numbers(kind: type[IntEnum]):
    schema = SCHEMAS[kind.__name__]
    assert dict(zip(schema["x-enum-varnames"], schema["enum"], strict=True)) == {
        member.name: member.value for member in kind
    }


@pytest.mark.parametrize("column", Column.__subclasses__(), ids=lambda column: column.__name__)
def test_a_column_is_bin_of_its_dtype_or_a_list(column: type[Column]):
    schema = SCHEMAS[column.__name__]
    assert schema["x-dtype"] == f"{column.wire_dtype.name}, little-endian"
    binary, listed = schema["oneOf"]
    assert binary == {"type": "string", "format": "binary"}
    floating = column.wire_dtype.kind == "f"
    assert listed["items"]["type"] == (["number", "null"] if floating else "integer")


@pytest.mark.parametrize(
    ("record", "field", "unit"),
    [
        ("SystemStatePacket", "timestamp_ns", "ns"),
        ("LayerTelemetry", "latency_ms", "ms"),
        ("HardwareContext", "total_memory_gb", "GB"),
        ("AdaptationCommand", "execution_deadline_ms", "ms"),
        ("AlphaSchedule", "start", "fraction_0_1"),
    ],
)
def test_units_are_kept(record: str, field: str, unit: str):
    assert SCHEMAS[record]["properties"][field]["x-unit"] == unit


def test_ranges_are_kept():
    risk = SCHEMAS["BlueprintSafetySheet"]["properties"]["risk_score"]["anyOf"][0]
    assert (risk["minimum"], risk["maximum"]) == (0.0, 1.0)


def test_the_ordered_inputs_state_the_partition_rule():
    partitioned = {name for name, channel in DOCUMENT["channels"].items() if "x-partitions" in channel}
    assert partitioned == {"state", "seeds"}
    assert DOCUMENT["channels"]["state"]["x-partitions"]["rule"] == "crc32(run_id as UTF-8) mod P"


def test_the_document_is_the_same_on_every_call():
    assert render_asyncapi() == render_asyncapi()


def _operated(action: str, stream: Stream) -> set[str]:
    channel = f"#/channels/{stream.name.lower()}"
    return {
        message["$ref"].rpartition("/")[2]
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == action and operation["channel"]["$ref"] == channel
        for message in operation["messages"]
    }


def _nodes(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from _nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from _nodes(child)


def _resolve(reference: str) -> object:
    node: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node
