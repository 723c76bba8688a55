"""What a sender writes: defaults left out, nothing a reader would refuse, one canonical form."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgpack
import pytest

from schemas.catalogue import MESSAGES
from schemas.codec import canonical_payload, decode_payload, encode_payload
from schemas.errors import InvalidPayload, LimitExceeded, OversizedEntry
from schemas.record import Float32Column, Message
from schemas.telemetry import MetricPoint, TelemetryPacket
from schemas.tolaria import LayerTelemetry, SystemStatePacket
from schemas.urabrask import BlueprintSafetyFailed

STATE = {"run_id": "run", "packet_id": "packet", "global_step": 7, "timestamp_ns": 1}


def test_the_sender_refuses_a_payload_that_is_too_large():
    columns = dict.fromkeys(LayerTelemetry.__struct_fields__, [1] * 400_000)
    with pytest.raises(OversizedEntry, match="SystemStatePacket payload is"):
        encode_payload(SystemStatePacket(**STATE, layers=LayerTelemetry(**columns)))


def test_the_sender_refuses_a_column_that_is_too_long():
    layers = LayerTelemetry(weight_norm=Float32Column.of([0.0] * 600_000))
    with pytest.raises(LimitExceeded, match="bin of 2400000 bytes, limit 2097152"):
        encode_payload(SystemStatePacket(**STATE, layers=layers))


def test_the_sender_refuses_a_string_that_is_too_long():
    with pytest.raises(LimitExceeded, match="string of 5000 bytes, limit 4096"):
        encode_payload(BlueprintSafetyFailed(blueprint_id="b", reason="x" * 5000, issued_at=1))


def test_the_sender_refuses_a_value_of_the_wrong_type():
    point = MetricPoint(name="loss", value="0.5")  # type: ignore[arg-type]  # the point
    packet = TelemetryPacket(packet_id="p", timestamp=1, source_subsystem="tolaria", metrics=[point])
    with pytest.raises(InvalidPayload, match=r"\$\.metrics\[0\]\.value"):
        encode_payload(packet)


@pytest.mark.parametrize("encode", [encode_payload, canonical_payload])
def test_the_sender_refuses_a_value_out_of_range(encode: Callable[[Message], bytes]):
    with pytest.raises(InvalidPayload, match=r"\$\.timestamp: Expected `int` >= 0"):
        encode(TelemetryPacket(packet_id="p", timestamp=-1, source_subsystem="tolaria"))


def test_defaults_are_left_out_of_a_payload():
    assert msgpack.unpackb(encode_payload(SystemStatePacket(**STATE))) == STATE


def test_nil_inside_a_map_of_numbers_is_not_measured_and_zero_is_a_value():
    payload = msgpack.packb(STATE | {"training_metrics": {"loss": 0.0, "gradient_norm": None}})
    message = decode_payload(MESSAGES["SystemStatePacket"], payload)
    assert isinstance(message, SystemStatePacket)
    assert message.training_metrics == {"loss": 0.0}


def test_a_loss_that_diverged_is_a_value():
    message = decode_payload(MESSAGES["SystemStatePacket"], msgpack.packb(STATE | {"training_loss": float("nan")}))
    assert isinstance(message, SystemStatePacket)
    assert message.training_loss is not None
    assert math.isnan(message.training_loss)


def test_the_canonical_payload_is_a_map_with_sorted_keys_at_every_level():
    packet = SystemStatePacket(**STATE, training_metrics={"loss": 1, "accuracy": 2.0})
    assert canonical_payload(packet) == msgpack.packb(
        {
            "global_step": 7,
            "packet_id": "packet",
            "run_id": "run",
            "timestamp_ns": 1,
            "training_metrics": {"accuracy": 2.0, "loss": 1.0},
        }
    )
