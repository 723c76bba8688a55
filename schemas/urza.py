"""Urza, the blueprint library: descriptors and graphs of host models and kernels (``domain.md`` §2.13).

Static structure travels once per blueprint version. Nodes are columns: element *i* of every list and column of
:class:`BlueprintLayers` describes layer *i*; edges refer to these positions.
"""

from __future__ import annotations

from typing import Annotated

from schemas.enums import BlueprintKind, BlueprintTier, CompileStatus
from schemas.record import (
    ColumnSet,
    Count,
    Float32Column,
    Fraction,
    Identifier,
    Int32Column,
    Message,
    Record,
    TimestampNs,
    UInt8Column,
    doc,
)


class BlueprintParameterBounds(Record, frozen=True, kw_only=True):
    """Inclusive range of a parameter, in the parameter's own unit.

    Raises:
        ValueError: the range is empty, or an end is NaN.
    """

    min_value: Annotated[float, doc("Smallest value that may be set")]
    max_value: Annotated[float, doc("Largest value that may be set")]
    whole: Annotated[bool, doc("Takes whole numbers only, as a rank or a count")] = False

    def __post_init__(self) -> None:
        if not self.min_value <= self.max_value:
            raise ValueError(f"{self.min_value} to {self.max_value} is no range; give the smaller as min_value")


class BlueprintDescriptor(Record, frozen=True, kw_only=True):
    """Leyline's descriptor: what a blueprint is, how risky, and which parameters may be set."""

    name: Annotated[str | None, doc("Name for people")] = None
    tier: BlueprintTier = BlueprintTier.UNSPECIFIED
    allowed_parameters: Annotated[
        dict[str, BlueprintParameterBounds], doc("Parameters a command may set, by parameter id")
    ] = {}
    risk: Annotated[Fraction | None, doc("Karn's estimate; a safety sheet overrides it", "1")] = None
    stage: Annotated[Count | None, doc("Maturity stage, 0 (simple) to 6 (pathological)")] = None
    quarantine_only: Annotated[bool, doc("To be grafted in quarantine only")] = False
    approval_required: Annotated[bool, doc("An operator must approve it before it is grafted")] = False
    approved: Annotated[bool, doc("An operator approved a blueprint that requires it")] = False
    description: Annotated[str | None, doc("Text for people")] = None


class CompileReport(Record, frozen=True, kw_only=True):
    """Tezzeret's facts about the compiled kernel."""

    status: CompileStatus = CompileStatus.UNKNOWN
    compile_ms: Annotated[float | None, doc("Compile time", "ms")] = None
    prewarm_ms: Annotated[float | None, doc("Warm-up time", "ms")] = None


class BlueprintLayers(ColumnSet, frozen=True, kw_only=True):
    """Layer nodes (requirements ``002`` §2)."""

    layer_id: Annotated[list[str], doc("Unique names, as in the model's module tree")]
    type: Annotated[list[str], doc("Operation, as linear, conv2d, layer_norm, embedding")]
    depth: Annotated[Int32Column | None, doc("Topological depth, 0-based")] = None
    input_channels: Annotated[Float32Column | None, doc("Features or channels read", "{channel}")] = None
    output_channels: Annotated[Float32Column | None, doc("Features or channels written", "{channel}")] = None
    activation_type: Annotated[list[str] | None, doc("Activation behind the layer; empty = none")] = None
    dropout_rate: Annotated[Float32Column | None, doc("Dropout behind the layer", "1")] = None
    parameter_count: Annotated[Float32Column | None, doc("Trainable scalars of the layer")] = None
    weight_norm: Annotated[Float32Column | None, doc("L2 norm of the weights when published")] = None
    gradient_norm: Annotated[Float32Column | None, doc("L2 norm of the weight gradients when published")] = None
    latency_ms: Annotated[Float32Column | None, doc("Latency on the reference device", "ms")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unique(self.layer_id, "layer_id")


class BlueprintActivations(ColumnSet, frozen=True, kw_only=True):
    """Activation nodes (requirements ``002`` §2)."""

    activation_id: Annotated[list[str], doc("Unique names")]
    type: Annotated[list[str], doc("Function, as relu, gelu, softmax")]
    saturation_rate: Annotated[
        Float32Column | None, doc("Catalogue value, 0 to 1: share of saturated outputs", "1")
    ] = None
    gradient_flow: Annotated[
        Float32Column | None, doc("Catalogue value, 0 to 1: share of the gradient let through", "1")
    ] = None
    computational_cost: Annotated[Float32Column | None, doc("Operations per element")] = None
    nonlinearity_strength: Annotated[Float32Column | None, doc("Catalogue value, 0 (linear) to 1", "1")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unique(self.activation_id, "activation_id")


class BlueprintParameters(ColumnSet, frozen=True, kw_only=True):
    """Parameter nodes: optimizer parameter groups of the host, or tunable parameters of a kernel (``002`` §2)."""

    parameter_id: Annotated[list[str], doc("Unique names")]
    parameter_count: Annotated[Float32Column | None, doc("Scalars in the group")] = None
    learning_rate: Annotated[Float32Column | None, doc("Learning rate when published")] = None
    momentum: Annotated[Float32Column | None, doc("Momentum, or Adam's first beta", "1")] = None
    gradient_variance: Annotated[Float32Column | None, doc("Variance of the group's gradient norm")] = None
    optimizer_family: Annotated[list[str] | None, doc("sgd, adam, adamw, rmsprop, adagrad, …")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unique(self.parameter_id, "parameter_id")


class EdgeList(ColumnSet, frozen=True, kw_only=True):
    """Edges of one relation; ``source`` and ``target`` are node positions.

    ``weight`` is the relation's static attribute: connection_strength for ``connects``, link weight for
    ``configures``, magnitude for ``modulates``.
    """

    source: Annotated[Int32Column, doc("0-based position of the source node")]
    target: Annotated[Int32Column, doc("0-based position of the target node")]
    weight: Annotated[Float32Column | None, doc("Static attribute of the relation")] = None
    residual: Annotated[UInt8Column | None, doc("1 = residual connection (connects only)")] = None


class Adjacency(Record, frozen=True, kw_only=True):
    """Edges by relation. Absent ``connects`` means a chain in layer order (``domain.md`` §2.13)."""

    connects: Annotated[EdgeList | None, doc("layer -> layer data flow")] = None
    feeds: Annotated[EdgeList | None, doc("layer -> activation")] = None
    influences: Annotated[EdgeList | None, doc("activation -> layer")] = None
    tunes: Annotated[EdgeList | None, doc("parameter -> layer")] = None
    configures: Annotated[EdgeList | None, doc("activation -> parameter")] = None
    modulates: Annotated[EdgeList | None, doc("parameter -> activation")] = None


class Capabilities(Record, frozen=True, kw_only=True):
    """What seeds may do in this host (``domain.md`` §4.9). An explicit empty list allows nothing."""

    allowed_blending_methods: Annotated[list[str] | None, doc("Methods allowed to every seed")] = None
    allowed_parameters_by_seed_id: Annotated[dict[str, list[str]], doc("Seed id -> parameter ids")] = {}
    allowed_parameters_by_seed_index: Annotated[
        dict[str, list[Count]], doc("Seed position as a decimal string -> parameter positions")
    ] = {}


class MonitorThresholds(Record, frozen=True, kw_only=True):
    """A seed above ``risk_max`` or below ``stage_min`` loses its monitor edges."""

    risk_max: Annotated[float | None, doc("Seed risk", "1")] = None
    stage_min: Annotated[float | None, doc("Seed stage / 11", "1")] = None


class Monitors(Record, frozen=True, kw_only=True):
    """Which layers seeds watch, where Kasmina does not say. Values are layer positions."""

    by_seed_id: Annotated[dict[str, list[Count]], doc("Seed id -> layer positions")] = {}
    by_seed_index: Annotated[
        dict[str, list[Count]], doc("Seed position as a decimal string -> layer positions")
    ] = {}
    thresholds: Annotated[MonitorThresholds | None, doc("Which seeds lose their monitor edges")] = None


class BlueprintGraph(Record, frozen=True, kw_only=True):
    """The structure of a blueprint."""

    layers: BlueprintLayers
    activations: BlueprintActivations | None = None
    parameters: BlueprintParameters | None = None
    adjacency: Adjacency | None = None
    capabilities: Capabilities | None = None
    monitors: Monitors | None = None
    source: Annotated[str | None, doc("How it was obtained: fx, module_tree, tezzeret, …")] = None


class Blueprint(Message, frozen=True, kw_only=True):
    """A host model's structure, or a kernel of the catalogue.

    ``blueprint_version`` is the publisher's content digest: a host whose structure changed is published
    again under the same id with a new version.
    """

    blueprint_id: Annotated[Identifier, doc("Name of the blueprint, over all of its versions")]
    blueprint_version: Annotated[Identifier, doc("Digest of the content, as telemetry columns refer to it")]
    kind: BlueprintKind = BlueprintKind.HOST
    issued_at: TimestampNs
    run_id: Annotated[str | None, doc("The run whose host model this is")] = None
    descriptor: BlueprintDescriptor | None = None
    graph: BlueprintGraph | None = None
    compiled: CompileReport | None = None
    checksum: Annotated[str | None, doc("SHA-256 of the kernel artifact, hex")] = None
    tags: Annotated[list[str], doc("Labels for people")] = []


def require_unique(names: list[str], field: str) -> None:
    """Raise ValueError naming the first id that occurs twice."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name in seen:
            raise ValueError(f"{field} {name!r} at position {position} occurs twice; ids must be unique")
        seen.add(name)
