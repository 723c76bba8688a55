"""Sample blueprints, packets, seeds, kernels and sheets: complete ones, from which a test takes things away."""

from __future__ import annotations

from typing import Any

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
from schemas.tolaria import (
    ActivationTelemetry,
    LayerTelemetry,
    ParameterTelemetry,
    SystemStatePacket,
)
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
from tamiyo_stream.bench.synthetic_run import HOST_ID, VERSION, telemetry
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables


def edges(pairs: list[tuple[int, int]], weight: Any = None, residual: Any = None) -> EdgeList:
    """Return an edge list of (source, target) pairs."""
    return EdgeList(
        source=[source for source, _ in pairs],
        target=[target for _, target in pairs],
        weight=weight,
        residual=residual,
    )


def sample_graph(
    layers: int = 6, parameters: int = 2, *, layer_columns: BlueprintLayers | None = None, **changes: Any
) -> BlueprintGraph:
    """Return a chain of layers with a skip edge, an activation behind every other layer, and parameter groups.

    ``layer_columns`` and ``changes`` replace what they name.
    """
    active = list(range(0, layers, 2))
    chain = [(i, i + 1) for i in range(layers - 1)]
    skip = [(0, layers - 1)] if layers > 2 else []
    flow = chain + skip
    fields: dict[str, Any] = {
        "layers": layer_columns
        or BlueprintLayers(
            layer_id=[f"layer{i}" for i in range(layers)],
            type=["linear" if i % 2 else "conv2d" for i in range(layers)],
            depth=list(range(layers)),
            input_channels=[16.0] * layers,
            output_channels=[32.0] * layers,
            activation_type=["relu" if i % 2 == 0 else "" for i in range(layers)],
            dropout_rate=[0.1] * layers,
            parameter_count=[1e4] * layers,
        ),
        "activations": BlueprintActivations(
            activation_id=[f"act{i}" for i in active],
            type=["relu"] * len(active),
            computational_cost=[2.0] * len(active),
        ),
        "parameters": BlueprintParameters(
            parameter_id=[f"group{i}" for i in range(parameters)],
            parameter_count=[1e5] * parameters,
            optimizer_family=["adamw"] * parameters,
        ),
        "adjacency": Adjacency(
            connects=edges(flow, weight=[1.0] * len(flow), residual=[0] * len(chain) + [1] * len(skip)),
            feeds=edges([(layer, position) for position, layer in enumerate(active)]),
            influences=edges(
                [(position, layer + 1) for position, layer in enumerate(active) if layer + 1 < layers]
            ),
            tunes=edges([(i % parameters, i) for i in range(layers)] if parameters else []),
            configures=edges([(a, 0) for a in range(len(active))] if parameters else [], weight=None),
            modulates=edges([(0, a) for a in range(len(active))] if parameters else [], weight=None),
        ),
    }
    return BlueprintGraph(**{**fields, **changes})


def sample_blueprint(layers: int = 6, parameters: int = 2, **changes: Any) -> Blueprint:
    """Return a host blueprint; ``changes`` replace fields of its graph."""
    return Blueprint(
        blueprint_id=HOST_ID,
        blueprint_version=VERSION,
        kind=BlueprintKind.HOST,
        issued_at=1,
        graph=sample_graph(layers, parameters, **changes),
        compiled=CompileReport(status=CompileStatus.COMPILED),
    )


def sample_kernel(blueprint_id: str = "kernel-a", **changes: Any) -> Blueprint:
    """Return a candidate kernel with a complete descriptor."""
    fields: dict[str, Any] = {
        "descriptor": BlueprintDescriptor(tier=BlueprintTier.SAFE, risk=0.2, stage=3, approval_required=True),
        "compiled": CompileReport(status=CompileStatus.COMPILED),
    }
    return Blueprint(
        blueprint_id=blueprint_id,
        blueprint_version=VERSION,
        kind=BlueprintKind.KERNEL,
        issued_at=1,
        **{**fields, **changes},
    )


def sample_sheet(blueprint_id: str, **changes: Any) -> BlueprintSafetySheet:
    """Return a complete safety sheet."""
    fields: dict[str, Any] = {
        "risk_score": 0.4,
        "hazard_band": HazardBand.MEDIUM,
        "handling_class": HandlingClass.RESTRICTED,
        "resource_profile": ResourceProfile.GPU,
        "mitigation": Mitigation(cooldown_ms=100.0),
    }
    return BlueprintSafetySheet(blueprint_id=blueprint_id, issued_at=1, **{**fields, **changes})


def sample_seed(seed_id: str = "seed0", **changes: Any) -> SeedState:
    """Return a blending seed with every field exported."""
    fields: dict[str, Any] = {
        "stage": SeedLifecycleStage.BLENDING,
        "gradient_norm": 0.7,
        "learning_rate": 1e-3,
        "layer_depth": 1,
        "age_epochs": 3,
        "risk_score": 0.3,
        "blueprint_id": "kernel-a",
        "monitoring_scope": 0.2,
        "activity_level": 0.9,
        "success_rate": 0.6,
        "risk_tolerance": 0.4,
        "specialization": "attention",
        "quarantine_only": False,
        "policy_version": "tamiyo_gnn_v1",
        "alpha": 0.25,
        "alpha_schedule": AlphaSchedule(method="cosine", start=0.1, end=0.9),
        "blend_allowed": True,
        "allowed_blending_methods": ["linear", "sigmoid"],
        "optimizer_families": ["adamw"],
        "allowed_parameters": ["group0"],
        "isolation_exemptions": [],
        "monitored_layers": [
            MonitoredLayer(layer_id="layer1", monitoring_frequency=0.5, adaptation_trigger_threshold=0.8)
        ],
    }
    return SeedState(seed_id=seed_id, **{**fields, **changes})


def sample_packet(
    blueprint: Blueprint | None = None, step: int = 1, seed: int = 0, **changes: Any
) -> SystemStatePacket:
    """Return a packet with every metric and, where ``blueprint`` is given, every telemetry column."""
    graph = blueprint.graph if blueprint is not None else None
    fields: dict[str, Any] = {
        "run_id": "run",
        "packet_id": f"run-step-{step}",
        "global_step": step,
        "timestamp_ns": 1_000 + step,
        "blueprint_id": HOST_ID,
        "blueprint_version": VERSION if blueprint is None else blueprint.blueprint_version,
        "current_epoch": 0,
        "training_loss": 0.9,
        "training_metrics": {
            "loss": 0.9,
            "gradient_norm": 1.2,
            "samples_per_s": 4000.0,
            "hook_latency_ms": 9.0,
            "gpu_util_percent": 50.0,
            "cpu_util_percent": 25.0,
        },
    }
    if graph is not None:
        fields["layers"] = telemetry(LayerTelemetry, len(graph.layers.layer_id), seed)
        if graph.activations is not None:
            fields["activations"] = telemetry(ActivationTelemetry, len(graph.activations.activation_id), seed)
        if graph.parameters is not None:
            fields["parameters"] = telemetry(ParameterTelemetry, len(graph.parameters.parameter_id), seed)
    return SystemStatePacket(**{**fields, **changes})


def sample_tables(blueprint: Blueprint | None = None, kernels: int = 2) -> Tables:
    """Return tables that hold ``blueprint``, kernels ``kernel-a``, ``kernel-b``, … and a sheet for each."""
    tables = Tables()
    if blueprint is not None:
        tables.add_blueprint(blueprint)
        tables.add_sheet(sample_sheet(blueprint.blueprint_id))
    for position in range(kernels):
        kernel = sample_kernel(f"kernel-{chr(ord('a') + position)}")
        tables.add_blueprint(kernel)
        tables.add_sheet(sample_sheet(kernel.blueprint_id))
    return tables


def sample_run(*seeds: SeedState, run_id: str = "run") -> RunState:
    """Return a run with ``seeds``."""
    return RunState(run_id=run_id, seeds={seed.seed_id: seed for seed in seeds})
