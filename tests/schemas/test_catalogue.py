"""The stream table carries what the design asks for, under Leyline's field names."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.catalogue import MESSAGES, Stream, messages_on
from schemas.codec import encode_payload
from schemas.kasmina import SeedState
from schemas.record import Column, ColumnSet, Record, column_types
from schemas.simic import PolicyUpdate
from schemas.tamiyo import (
    AdaptationCommand,
    CommandCircuitBreaker,
    CommandOptimizerAdjustment,
    CommandSeedOperation,
    FieldReport,
    MitigationAction,
)
from schemas.telemetry import (
    EmergencySignal,
    MetricPoint,
    SystemHealth,
    TelemetryEvent,
    TelemetryPacket,
    TraceSpan,
)
from schemas.tolaria import (
    ActivationTelemetry,
    EdgeTelemetry,
    HardwareContext,
    LayerTelemetry,
    ParameterTelemetry,
    SystemStatePacket,
)
from schemas.urabrask import BlueprintSafetySheet, Mitigation
from schemas.urza import BlueprintActivations, BlueprintDescriptor, BlueprintLayers, BlueprintParameterBounds

#: Design §4: stream (default name) -> types read from it, types written to it.
STREAMS: dict[str, tuple[set[str], set[str]]] = {
    "oona.tolaria.state": ({"SystemStatePacket"}, set()),
    "oona.kasmina.seeds": ({"SeedExport"}, set()),
    "oona.urabrask.bsds": ({"BlueprintSafetySheet", "BlueprintSafetyFailed"}, set()),
    "oona.urza.blueprints": ({"Blueprint"}, set()),
    "oona.policy": ({"PolicyUpdate", "RegistrySnapshot", "OperatorDirective"}, set()),
    "oona.telemetry": ({"TelemetryPacket"}, {"TelemetryPacket"}),
    "oona.tamiyo.commands": (set(), {"AdaptationCommand"}),
    "oona.tamiyo.reports": (set(), {"FieldReport"}),
    "oona.emergency": ({"EmergencySignal"}, {"TelemetryPacket", "AdaptationCommand"}),
    "oona.deadletter": (set(), set()),
}

#: Domain brief §2.3 to §2.13: Leyline's fields. Not carried: EmergencySignal.payload_checksum, which the entry's
#: signature covers; BlueprintDescriptor.blueprint_id, which stands in the Blueprint around it.
LEYLINE_FIELDS: dict[type[Record], str] = {
    SystemStatePacket: (
        "version current_epoch validation_accuracy validation_loss timestamp_ns hardware_context training_metrics "
        "seed_states packet_id global_step training_loss source_subsystem training_run_id experiment_name"
    ),
    HardwareContext: (
        "device_type device_id total_memory_gb available_memory_gb temperature_celsius utilization_percent "
        "compute_capability"
    ),
    SeedState: "seed_id stage gradient_norm learning_rate layer_depth metrics age_epochs risk_score",
    AdaptationCommand: (
        "version command_id command_type target_seed_id execution_deadline_ms issued_at issued_by seed_operation "
        "optimizer_adjustment circuit_breaker rollback_payload annotations"
    ),
    CommandSeedOperation: "operation blueprint_id parameters",
    CommandOptimizerAdjustment: "optimizer_id hyperparameters",
    CommandCircuitBreaker: "desired_state rationale",
    FieldReport: (
        "version report_id command_id training_run_id seed_id blueprint_id outcome metrics "
        "observation_window_epochs issued_at tamiyo_policy_version follow_up_actions notes"
    ),
    MitigationAction: "action_type rationale",
    PolicyUpdate: "version policy_id training_run_id issued_at tamiyo_policy_version payload",
    TelemetryPacket: "packet_id timestamp source_subsystem level metrics events spans system_health",
    MetricPoint: "name value unit attributes",
    TelemetryEvent: "event_id description level attributes",
    TraceSpan: "span_id parent_span_id name start_time end_time attributes",
    SystemHealth: "status summary indicators",
    EmergencySignal: "version level reason origin triggered_at monotonic_time_ms run_id attributes",
    BlueprintSafetySheet: (
        "version blueprint_id risk_score hazard_band handling_class resource_profile recommendation issued_at "
        "provenance mitigation hazards"
    ),
    Mitigation: "recommendation cooldown_ms notes",
    BlueprintDescriptor: ("name tier allowed_parameters risk stage quarantine_only approval_required description"),
    BlueprintParameterBounds: "min_value max_value",
    BlueprintLayers: (
        "layer_id type depth latency_ms parameter_count dropout_rate weight_norm gradient_norm activation_type "
        "input_channels output_channels"
    ),
    BlueprintActivations: (
        "activation_id type saturation_rate gradient_flow computational_cost nonlinearity_strength"
    ),
}


@pytest.mark.parametrize("stream", Stream)
def test_a_stream_carries_the_messages_of_the_design(stream: Stream):
    received = {spec.name for spec in MESSAGES.values() if stream in spec.received_on}
    sent = {spec.name for spec in MESSAGES.values() if stream in spec.sent_on}
    assert (received, sent) == STREAMS[stream.value]
    assert {spec.name for spec in messages_on(stream)} == received | sent


def test_the_streams_have_the_default_names_of_the_design():
    assert {stream.value for stream in Stream} == STREAMS.keys()


@pytest.mark.parametrize("record", LEYLINE_FIELDS, ids=lambda record: record.__name__)
def test_a_record_has_leylines_fields(record: type[Record]):
    assert set(LEYLINE_FIELDS[record].split()) <= set(record.__struct_fields__)


def test_the_state_names_run_and_blueprint_of_its_own():
    assert {"run_id", "blueprint_id", "blueprint_version"} <= set(SystemStatePacket.__struct_fields__)


@pytest.mark.parametrize("nodes", [(10_000, 0, 0), (0, 10_000, 0), (0, 0, 10_000), (5_000, 4_000, 1_000)])
def test_a_state_of_ten_thousand_nodes_fits_a_quarter_mebibyte(nodes: tuple[int, int, int]):
    layers, activations, parameters = nodes
    packet = SystemStatePacket(
        run_id="run",
        packet_id="packet",
        global_step=1,
        timestamp_ns=1,
        layers=_every_column(LayerTelemetry, layers),
        activations=_every_column(ActivationTelemetry, activations),
        parameters=_every_column(ParameterTelemetry, parameters),
    )
    assert len(encode_payload(packet)) <= 256 * 1024


def test_a_state_of_the_design_target_is_within_its_limits():
    packet = SystemStatePacket(
        run_id="run",
        packet_id="packet",
        global_step=1,
        timestamp_ns=1,
        layers=_every_column(LayerTelemetry, 60_000),
        activations=_every_column(ActivationTelemetry, 40_000),
        edges=EdgeTelemetry(connection_strength=_column(EdgeTelemetry, "connection_strength", 500_000)),
    )
    assert encode_payload(packet)


def _every_column(kind: type[ColumnSet], length: int) -> ColumnSet:
    return kind(**{name: _column(kind, name, length) for name in column_types(kind)})


def _column(kind: type[ColumnSet], name: str, length: int) -> Column:
    return column_types(kind)[name].of(np.arange(length) % 200)
