"""Payloads that are no message are refused with the reason, the field, its value and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalogue import MESSAGES, MessageSpec
from schemas.codec import decode_payload, encode_payload
from schemas.errors import EntryError, InvalidPayload, UndecodablePayload
from schemas.record import Message
from tests.schemas.strategies import any_message

STATE = {"run_id": "run", "packet_id": "packet", "global_step": 7, "timestamp_ns": 1}
SHEET = {"blueprint_id": "BP001", "issued_at": 1}
COMMAND = {
    "command_id": "c",
    "command_type": 5,
    "execution_deadline_ms": 45,
    "issued_at": 1,
    "run_id": "run",
    "packet_id": "packet",
    "global_step": 7,
}
REPORT = {
    "report_id": "r",
    "command_id": "c",
    "training_run_id": "run",
    "issued_at": 1,
    "tamiyo_policy_version": "v",
}
POLICY = {"policy_id": "p", "issued_at": 1, "tamiyo_policy_version": "v", "sha256": "0", "size_bytes": 1}
BLUEPRINT = {"blueprint_id": "b", "blueprint_version": "v", "issued_at": 1}
SEEDS = {"run_id": "run", "timestamp_ns": 1, "seeds": []}
FAILED = {"blueprint_id": "b", "reason": "no probe", "issued_at": 1}
REGISTRY = {"registry": "r", "entries": {}, "digest": "0", "issued_at": 1}
DIRECTIVE = {"issued_at": 1, "issued_by": "ops"}
TELEMETRY = {"packet_id": "p", "timestamp": 1, "source_subsystem": "tolaria"}
SIGNAL = {"level": 3, "reason": "r", "origin": "tolaria", "triggered_at": 1}
#: The least payload of every message type.
LEAST: dict[str, dict[str, Any]] = {
    "SystemStatePacket": STATE,
    "SeedExport": SEEDS,
    "BlueprintSafetySheet": SHEET,
    "BlueprintSafetyFailed": FAILED,
    "Blueprint": BLUEPRINT,
    "PolicyUpdate": POLICY | {"uri": "file:///policy.pt"},
    "RegistrySnapshot": REGISTRY,
    "OperatorDirective": DIRECTIVE | {"conservative": 1},
    "TelemetryPacket": TELEMETRY,
    "EmergencySignal": SIGNAL,
    "AdaptationCommand": COMMAND,
    "FieldReport": REPORT,
}
LAYERS = {"layer_id": ["a"], "type": ["x"]}
BOUNDS = {"min_value": 1, "max_value": 2}
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Refused:
    """A map that its message type refuses: at which path, and what the text says of the value."""

    type: str
    payload: Any
    path: str
    says: str


REFUSED = [
    Refused("SystemStatePacket", [], "$", "a list of 0"),
    Refused("SystemStatePacket", 7, "$", "7"),
    Refused("SystemStatePacket", STATE | {"global_step": "7"}, "$.global_step", "'7'"),
    Refused("SystemStatePacket", STATE | {"global_step": 7.0}, "$.global_step", "7.0"),
    Refused("SystemStatePacket", STATE | {"global_step": True}, "$.global_step", "True"),
    Refused("SystemStatePacket", STATE | {"global_step": -1}, "$.global_step", "-1"),
    Refused("SystemStatePacket", STATE | {"global_step": 2**63}, "$.global_step", str(2**63)),
    Refused("SystemStatePacket", STATE | {"run_id": ""}, "$.run_id", "''"),
    Refused("SystemStatePacket", STATE | {"run_id": "r" * 201}, "$.run_id", "'rrr"),
    Refused("SystemStatePacket", STATE | {"run_id": b"run"}, "$.run_id", "b'run'"),
    Refused("SystemStatePacket", STATE | {"version": 2}, "$.version", "2"),
    Refused("SystemStatePacket", STATE | {"training_loss": "0.5"}, "$.training_loss", "'0.5'"),
    Refused(
        "SystemStatePacket", STATE | {"training_metrics": {"a": 1.0, "b": "x"}}, "$.training_metrics['b']", "'x'"
    ),
    Refused("SystemStatePacket", STATE | {"training_metrics": {"a": True}}, "$.training_metrics['a']", "True"),
    Refused("SystemStatePacket", STATE | {"training_metrics": {b"a": 1.0}}, "$.training_metrics", "`bytes`"),
    Refused("SystemStatePacket", STATE | {"training_run_id": "other"}, "$", "'other'"),
    Refused("SystemStatePacket", STATE | {"seed_states": [None]}, "$.seed_states[0]", "`null`"),
    Refused(
        "SystemStatePacket",
        STATE | {"seed_states": [{"seed_id": "a"}, {"seed_id": "b", "stage": 12}]},
        "$.seed_states[1].stage",
        "12",
    ),
    Refused(
        "SystemStatePacket", STATE | {"layers": {"loss_contribution": b"abc"}}, "$.layers.loss_contribution", "3"
    ),
    Refused("SystemStatePacket", STATE | {"layers": {"latency_ms": [1.0, "x"]}}, "$.layers.latency_ms", "'x'"),
    Refused(
        "SystemStatePacket",
        STATE | {"layers": {"gradient_instability": [1, 256]}},
        "$.layers.gradient_instability",
        "256",
    ),
    Refused(
        "SystemStatePacket",
        STATE | {"layers": {"weight_norm": [1.0], "gradient_norm": [1.0, 2.0]}},
        "$.layers",
        "`weight_norm` has 1 elements but `gradient_norm` has 2",
    ),
    Refused("BlueprintSafetySheet", SHEET | {"hazard_band": 5}, "$.hazard_band", "5"),
    Refused("BlueprintSafetySheet", SHEET | {"hazard_band": "HIGH"}, "$.hazard_band", "'HIGH'"),
    Refused("BlueprintSafetySheet", SHEET | {"risk_score": NAN}, "$.risk_score", "nan"),
    Refused("BlueprintSafetySheet", SHEET | {"risk_score": 1.5}, "$.risk_score", "1.5"),
    Refused("BlueprintSafetySheet", SHEET | {"mitigation": {"cooldown_ms": -1}}, "$.mitigation.cooldown_ms", "-1"),
    Refused("AdaptationCommand", COMMAND | {"command_type": 8}, "$.command_type", "8"),
    Refused("AdaptationCommand", COMMAND | {"command_type": 1, "target_seed_id": "s"}, "$", "`seed_operation`"),
    Refused(
        "AdaptationCommand",
        COMMAND | {"command_type": 1, "seed_operation": {"operation": 8}},
        "$",
        "`target_seed_id` of a SEED command is empty",
    ),
    Refused(
        "AdaptationCommand", COMMAND | {"seed_operation": {"operation": 8}}, "$", "belongs to SEED, not to PAUSE"
    ),
    Refused(
        "AdaptationCommand",
        COMMAND
        | {"command_type": 1, "target_seed_id": "s", "seed_operation": {"operation": 1, "parameters": {"a": NAN}}},
        "$.seed_operation",
        "['a'] is nan",
    ),
    Refused(
        "AdaptationCommand",
        COMMAND
        | {"command_type": 3, "optimizer_adjustment": {"optimizer_id": "sgd", "hyperparameters": {"lr": INF}}},
        "$.optimizer_adjustment",
        "['lr'] is inf",
    ),
    Refused("FieldReport", REPORT | {"metrics": {"loss_delta": NAN}}, "$", "['loss_delta'] is nan"),
    Refused("FieldReport", REPORT | {"observation_window_epochs": 0}, "$.observation_window_epochs", "0"),
    Refused("OperatorDirective", DIRECTIVE, "$", "nothing is directed"),
    Refused("OperatorDirective", DIRECTIVE | {"conservative": 7}, "$.conservative", "7"),
    Refused("PolicyUpdate", POLICY, "$", "neither"),
    Refused("PolicyUpdate", POLICY | {"uri": "file:///p", "payload": b"p"}, "$", "both"),
    Refused(
        "RegistrySnapshot",
        REGISTRY | {"entries": {"a": 1, "b": 0}},
        "$.entries['b']",
        "0",
    ),
    Refused(
        "Blueprint",
        BLUEPRINT | {"graph": {"layers": {"layer_id": ["a", "b", "a"], "type": ["x", "x", "x"]}}},
        "$.graph.layers",
        "'a' at position 2 occurs twice",
    ),
    Refused(
        "Blueprint",
        BLUEPRINT | {"descriptor": {"allowed_parameters": {"heads": {"min_value": 6, "max_value": 4}}}},
        "$.descriptor.allowed_parameters[...]",
        "6.0 to 4.0 is no range",
    ),
    Refused(
        "Blueprint",
        BLUEPRINT | {"graph": {"layers": LAYERS, "monitors": {"by_seed_id": {"a": [0], "b": [1, -2]}}}},
        "$.graph.monitors.by_seed_id['b'][1]",
        "-2",
    ),
    Refused(
        "Blueprint",
        BLUEPRINT | {"descriptor": {"allowed_parameters": {"a": BOUNDS, "b": {"min_value": 1}}}},
        "$.descriptor.allowed_parameters['b'].max_value",
        "missing required field",
    ),
    Refused(
        "Blueprint",
        BLUEPRINT | {"descriptor": {"allowed_parameters": {"a": BOUNDS | {"max_value": NAN}}}},
        "$.descriptor.allowed_parameters[...]",
        "1.0 to nan is no range",
    ),
    Refused("Blueprint", BLUEPRINT | {"kind": 3}, "$.kind", "3"),
    Refused("Blueprint", BLUEPRINT | {"descriptor": {"risk": 2}}, "$.descriptor.risk", "2"),
    Refused(
        "Blueprint",
        BLUEPRINT | {"graph": {"layers": {"layer_id": ["a", 5], "type": ["x", "x"]}}},
        "$.graph.layers.layer_id[1]",
        "5",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.type}-{case.path}-{case.says}")
def test_a_refusal_names_path_value_and_fix(case: Refused):
    with pytest.raises(InvalidPayload) as refused:
        decode_payload(MESSAGES[case.type], msgpack.packb(case.payload))
    text = str(refused.value)
    assert refused.value.reason == "invalid_payload"
    assert refused.value.field == case.path
    assert text.startswith(f"{case.type}: {case.path}: ")
    assert case.says in text
    assert "; " in text


def _required_fields() -> list[tuple[str, str]]:
    return [
        (spec.name, field.name)
        for spec in MESSAGES.values()
        for field in msgspec.structs.fields(spec.type)
        if field.required
    ]


@pytest.mark.parametrize(("name", "field"), _required_fields())
def test_a_missing_required_field_names_its_path(name: str, field: str):
    least = {key: value for key, value in LEAST[name].items() if key != field}
    with pytest.raises(InvalidPayload, match=rf"missing required field `{field}`; ") as refused:
        decode_payload(MESSAGES[name], msgpack.packb(least))
    assert refused.value.field == f"$.{field}"


def test_a_missing_field_deep_inside_names_its_path():
    payload = msgpack.packb(STATE | {"seed_states": [{"seed_id": "a"}, {"stage": 1}]})
    with pytest.raises(InvalidPayload) as refused:
        decode_payload(MESSAGES["SystemStatePacket"], payload)
    assert refused.value.field == "$.seed_states[1].seed_id"


@settings(max_examples=60, deadline=None)
@given(message=any_message(), data=st.data())
def test_a_truncated_payload_is_undecodable_wherever_it_ends(message: Message, data: st.DataObject):
    payload = encode_payload(message)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(UndecodablePayload, match="; send "):
        decode_payload(MESSAGES[type(message).__name__], payload[:cut])


@settings(max_examples=60, deadline=None)
@given(message=any_message(), trailing=st.binary(min_size=1, max_size=8))
def test_trailing_bytes_are_refused(message: Message, trailing: bytes):
    with pytest.raises(UndecodablePayload, match="extra data"):
        decode_payload(MESSAGES[type(message).__name__], encode_payload(message) + trailing)


@settings(max_examples=200, deadline=None)
@given(spec=st.sampled_from(list(MESSAGES.values())), payload=st.binary(max_size=64))
def test_bytes_of_any_kind_decode_or_are_refused_with_a_reason(spec: MessageSpec, payload: bytes):
    refused = _refusal_of(spec, payload)
    assert refused is None or (refused.field and "; " in str(refused))


@settings(max_examples=100, deadline=None)
@given(message=any_message(), data=st.data())
def test_an_altered_payload_decodes_or_is_refused_with_a_reason(message: Message, data: st.DataObject):
    payload = bytearray(encode_payload(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused = _refusal_of(MESSAGES[type(message).__name__], bytes(payload))
    assert refused is None or (refused.field and "; " in str(refused))


def _refusal_of(spec: MessageSpec, payload: bytes) -> EntryError | None:
    try:
        decode_payload(spec, payload)
    except EntryError as refused:
        return refused
    return None


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb(STATE | {"x": msgpack.ExtType(5, b"abc")}),
        msgpack.packb(STATE | {"x": msgpack.Timestamp(1)}),
        msgpack.packb(STATE | {"x": msgpack.ExtType(5, b"")}),
    ],
    ids=["extension", "timestamp", "empty-extension"],
)
def test_extension_types_are_refused(payload: bytes):
    with pytest.raises(UndecodablePayload, match=r"extension type .*; send maps, lists"):
        decode_payload(MESSAGES["SystemStatePacket"], payload)


@pytest.mark.parametrize("key", [1, None, True, 1.5])
def test_map_keys_are_strings(key: object):
    with pytest.raises(UndecodablePayload, match="map key"):
        decode_payload(MESSAGES["SystemStatePacket"], msgpack.packb(STATE | {key: 1}))


def test_strings_are_utf8():
    with pytest.raises(UndecodablePayload, match="utf-8"):
        decode_payload(MESSAGES["SystemStatePacket"], b"\x81\xa1x\xa1\xff")
