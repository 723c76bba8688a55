"""A seeded training run of any size, with every node type and relation, for benchmarks and tests.

Seven nodes in ten are layers, nearly all others activations. Structure and telemetry are random but of the ranges
that host models show; equal arguments give equal runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.enums import (
    BlueprintKind,
    BlueprintTier,
    CompileStatus,
    HandlingClass,
    HazardBand,
    ResourceProfile,
    SeedLifecycleStage,
)
from schemas.kasmina import AlphaSchedule, MonitoredLayer, SeedState
from schemas.record import Float32Column, Int32Column, Record, column_types
from schemas.tolaria import ActivationTelemetry, LayerTelemetry, ParameterTelemetry, SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet, Mitigation
from schemas.urza import (
    Adjacency,
    Blueprint,
    BlueprintActivations,
    BlueprintDescriptor,
    BlueprintGraph,
    BlueprintLayers,
    BlueprintParameters,
    CompileReport,
    EdgeList,
)
from tamiyo_stream.runs.tables import Tables

HOST_ID = "host"
VERSION = "v1"
_PARAMETERS = 8
_SEEDS = 16
_MONITORED = 3
#: Longest connection, in layers.
_REACH = 64


def synthetic_run(
    nodes: int, edge_count: int, seed: int = 0
) -> tuple[Blueprint, SystemStatePacket, list[SeedState]]:
    """Return blueprint, packet and seeds of a graph with about ``nodes`` nodes and ``edge_count`` forward edges.

    The layers are joined by as many random ``connects`` edges as the other relations leave of the count; at least
    one per layer where there are layers enough.
    """
    rng = np.random.default_rng(seed)
    layers = max(int(nodes * 0.7), 2)
    activations = max(nodes - layers - _PARAMETERS - _SEEDS - 1, 1)
    others = 2 * layers + 4 * activations + _SEEDS * (_MONITORED + 2)
    blueprint = Blueprint(
        blueprint_id=HOST_ID,
        blueprint_version=VERSION,
        kind=BlueprintKind.HOST,
        issued_at=1,
        graph=_graph(rng, layers, activations, max(edge_count - others, layers)),
        compiled=CompileReport(status=CompileStatus.COMPILED),
    )
    return blueprint, synthetic_packet(blueprint, seed=seed), [_seed(index, layers) for index in range(_SEEDS)]


def synthetic_packet(blueprint: Blueprint, *, step: int = 1, seed: int = 0) -> SystemStatePacket:
    """Return step ``step`` of a run of ``blueprint``: every metric and every column of its nodes."""
    graph = blueprint.graph
    if graph is None or graph.activations is None or graph.parameters is None:
        raise ValueError(f"blueprint {blueprint.blueprint_id!r} lists no nodes; give one of synthetic_run")
    return SystemStatePacket(
        run_id="run",
        packet_id=f"run-step-{step}",
        global_step=step,
        timestamp_ns=1_000 + step,
        blueprint_id=blueprint.blueprint_id,
        blueprint_version=blueprint.blueprint_version,
        current_epoch=0,
        training_loss=0.9,
        training_metrics={
            "loss": 0.9,
            "gradient_norm": 1.2,
            "samples_per_s": 4000.0,
            "hook_latency_ms": 9.0,
            "gpu_util_percent": 50.0,
            "cpu_util_percent": 25.0,
        },
        layers=telemetry(LayerTelemetry, len(graph.layers.layer_id), seed),
        activations=telemetry(ActivationTelemetry, len(graph.activations.activation_id), seed),
        parameters=telemetry(ParameterTelemetry, len(graph.parameters.parameter_id), seed),
    )


def synthetic_tables(blueprint: Blueprint, kernels: int = 4) -> Tables:
    """Return tables that hold ``blueprint``, ``kernels`` candidates and a safety sheet for each of them."""
    tables = Tables()
    candidates = [_kernel(f"kernel-{index}") for index in range(kernels)]
    for known in (blueprint, *candidates):
        tables.add_blueprint(known)
        tables.add_sheet(
            BlueprintSafetySheet(
                blueprint_id=known.blueprint_id,
                issued_at=1,
                risk_score=0.4,
                hazard_band=HazardBand.MEDIUM,
                handling_class=HandlingClass.RESTRICTED,
                resource_profile=ResourceProfile.GPU,
                mitigation=Mitigation(cooldown_ms=100.0),
            )
        )
    return tables


def telemetry(record: type[Record], count: int, seed: int = 0) -> Any:
    """Return a ``record`` of telemetry columns, all of them present, ``count`` elements each."""
    rng = np.random.default_rng(seed)
    columns = {
        name: rng.integers(1, 5, count) if kind.wire_dtype.kind == "u" else rng.uniform(0.05, 0.95, count)
        for name, kind in column_types(record).items()
    }
    return record(**columns)


def _graph(rng: np.random.Generator, layers: int, activations: int, connects: int) -> BlueprintGraph:
    source, target = _connections(rng, layers, connects)
    owners = rng.permutation(layers)[np.arange(activations) % layers]
    own = np.arange(activations)
    groups = np.arange(activations) % _PARAMETERS
    return BlueprintGraph(
        layers=BlueprintLayers(
            layer_id=[f"layer{index}" for index in range(layers)],
            type=["linear" if index % 2 else "conv2d" for index in range(layers)],
            depth=Int32Column.of(np.arange(layers)),
            input_channels=Float32Column.of(np.full(layers, 16.0)),
            output_channels=Float32Column.of(np.full(layers, 32.0)),
            activation_type=["" if index % 2 else "relu" for index in range(layers)],
            dropout_rate=Float32Column.of(np.full(layers, 0.1)),
            parameter_count=Float32Column.of(np.full(layers, 1e4)),
        ),
        activations=BlueprintActivations(
            activation_id=[f"act{index}" for index in range(activations)],
            type=["relu"] * activations,
            computational_cost=Float32Column.of(np.full(activations, 2.0)),
        ),
        parameters=BlueprintParameters(
            parameter_id=[f"group{index}" for index in range(_PARAMETERS)],
            parameter_count=Float32Column.of(np.full(_PARAMETERS, 1e5)),
            optimizer_family=["adamw"] * _PARAMETERS,
        ),
        adjacency=Adjacency(
            connects=_edges(source, target, rng),
            feeds=_edges(owners, own),
            influences=_edges(own, np.minimum(owners + 1, layers - 1)),
            tunes=_edges(np.arange(layers) % _PARAMETERS, np.arange(layers)),
            configures=_edges(own, groups, rng),
            modulates=_edges(groups, own, rng),
        ),
    )


def _edges(source: Any, target: Any, rng: np.random.Generator | None = None) -> EdgeList:
    """Return an edge list, with random weights where ``rng`` is given."""
    return EdgeList(
        source=Int32Column.of(source),
        target=Int32Column.of(target),
        weight=None if rng is None else Float32Column.of(rng.uniform(0.1, 1.0, len(source))),
    )


def _connections(rng: np.random.Generator, layers: int, count: int) -> tuple[Any, Any]:
    """Forward connections, none twice: about ``count``, fewer where so many layers cannot hold them."""
    source = rng.integers(0, layers - 1, count * 2)
    target = np.minimum(source + rng.integers(1, _REACH, count * 2), layers - 1)
    distinct = np.unique(source * layers + target)
    kept = np.sort(rng.permutation(distinct)[:count])
    return kept // layers, kept % layers


def _seed(index: int, layers: int) -> SeedState:
    watched = sorted({(index * 7 + offset) % layers for offset in range(_MONITORED)})
    return SeedState(
        seed_id=f"seed{index}",
        stage=SeedLifecycleStage.BLENDING,
        gradient_norm=0.7,
        learning_rate=1e-3,
        layer_depth=1,
        age_epochs=3,
        risk_score=0.3,
        blueprint_id="kernel-0",
        monitoring_scope=0.2,
        activity_level=0.9,
        success_rate=0.6,
        risk_tolerance=0.4,
        specialization="attention",
        quarantine_only=False,
        policy_version="tamiyo_gnn_v1",
        alpha=0.25,
        alpha_schedule=AlphaSchedule(method="cosine", start=0.1, end=0.9),
        blend_allowed=True,
        allowed_blending_methods=["linear", "sigmoid"],
        optimizer_families=["adamw"],
        allowed_parameters=["group0"],
        isolation_exemptions=[],
        monitored_layers=[
            MonitoredLayer(layer_id=f"layer{layer}", monitoring_frequency=0.5, adaptation_trigger_threshold=0.8)
            for layer in watched
        ],
    )


def _kernel(blueprint_id: str) -> Blueprint:
    return Blueprint(
        blueprint_id=blueprint_id,
        blueprint_version=VERSION,
        kind=BlueprintKind.KERNEL,
        issued_at=1,
        descriptor=BlueprintDescriptor(tier=BlueprintTier.SAFE, risk=0.2, stage=3, approval_required=True),
        compiled=CompileReport(status=CompileStatus.COMPILED),
    )
