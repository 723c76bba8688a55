"""The node feature table: every channel of every node type, one line each (design §6).

Raw widths, slot and mask positions, coverage keys, the checkpoint's feature manifest and the reference page all
derive from :data:`NODES`. Sources: requirements ``000`` ("Quick-reference schema", "Graph Schema Definition") and
``002`` §2.

Layout of a raw row: the channels in table order, each followed by its mask slot where it has one, zero-padded to
the raw width. A category occupies ``width`` slots: the builder writes its registry index (0 = unknown) into the
first and zeros into the rest, the model replaces the block by a learned embedding. Index 0 is a category's mask.
Channels that name the same ``mask_group`` share one mask slot behind the group's last channel: 1 only if all are
present.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from schemas.enums import BLENDING_METHODS, OPTIMIZER_FAMILIES


class Kind(StrEnum):
    """How a value becomes slots."""

    NUMERIC = "numeric"
    CATEGORY = "category"
    MULTI_HOT = "multi_hot"
    FLAG = "flag"


class Transform(StrEnum):
    """What is done to a present number. ``prior`` of the channel names the statistics used, ``total`` the divisor.

    Everything but ``CLAMP01`` is limited to ±:data:`~tamiyo_stream.runs.norms.Z_LIMIT` in the end.
    """

    NONE = "none"
    CLAMP01 = "clamp01"  # divided by the total, then limited to [0, 1]
    EWMA = "ewma"  # z-score by the run's moving statistics, then update (requirements 000, §3)
    LOG1P_Z = "log1p+z"  # log1p, then z-score by a fixed prior (requirements 000, §3)
    Z = "z"  # z-score by a fixed prior (requirements 000, momentum)
    RATIO = "ratio"  # a share of the total


class Total(StrEnum):
    """Totals that depend on the graph; other totals are plain numbers."""

    MAX = "max"  # largest magnitude in the column
    SUM = "sum"  # sum of the column's magnitudes
    FAN_OUT = "fan_out"  # largest number of edges of the relation that leave one node
    DEPTH = "depth"  # depth of the host's deepest layer


@dataclass(frozen=True, slots=True)
class Channel:
    """One feature of a node type.

    Attributes:
        name: field name of the requirements; unique within the node type.
        source: wire field it is read from, as ``state.layers.latency_ms``; ``run.`` = derived from the rolling
        cache.
        fallback: wire field read, element by element, where ``source`` is missing, as Urza's catalogue value.
        kind: how it becomes slots.
        transform: applied to present numbers.
        default: written where missing (mask 0).
        width: slots of a category's embedding.
        vocabulary: registry or enum that numbers a category.
        capacity: rows of the category's embedding table, index 0 (unknown) included.
        labels: positions of a multi-hot.
        prior: key of the normalisation statistics (``runs.norms``).
        total: what a ratio or a clamped number is a share of.
        static: read once per blueprint version instead of every step.
        mandatory: counts towards ``mandatory_coverage``.
        mask_group: shared mask, see module docstring.
        counted: False = always known to Tamiyo itself, so that it says nothing about what upstream sent
        (coverage).
    """

    name: str
    source: str
    kind: Kind = Kind.NUMERIC
    transform: Transform = Transform.NONE
    default: float = 0.0
    width: int = 1
    vocabulary: str = ""
    capacity: int = 0
    labels: tuple[str, ...] = ()
    prior: str = ""
    total: float | Total = 1.0
    static: bool = False
    mandatory: bool = True
    masked: bool = True
    mask_group: str = ""
    fallback: str = ""
    counted: bool = True


@dataclass(frozen=True)
class NodeSchema:
    """All channels of a node type and where they lie in its raw row of ``raw_width`` floats."""

    node_type: str
    raw_width: int
    encoded_width: int
    channels: tuple[Channel, ...] = field(repr=False)
    coverage_name: str = ""

    @property
    def family(self) -> str:
        """Prefix of the type's coverage keys (``domain.md`` §6.4 calls the context ``global``)."""
        return self.coverage_name or self.node_type

    @cached_property
    def slots(self) -> dict[str, slice]:
        """Value slots by channel name."""
        return {name: slot for name, slot, _ in self._layout}

    @cached_property
    def mask_slots(self) -> dict[str, int]:
        """Mask slot by channel name, for the channels that have one."""
        return {name: mask for name, _, mask in self._layout if mask is not None}

    @cached_property
    def used_width(self) -> int:
        """Slots in use; the rest up to ``raw_width`` is zero padding."""
        ends = [int(slot.stop) for slot in self.slots.values()]
        return max(ends + [mask + 1 for mask in self.mask_slots.values()])

    def channel(self, name: str) -> Channel:
        """Return the channel ``name``.

        Raises:
            KeyError: no such channel.
        """
        return self._by_name[name]

    @cached_property
    def categories(self) -> tuple[Channel, ...]:
        """The channels that the model embeds."""
        return tuple(channel for channel in self.channels if channel.kind is Kind.CATEGORY)

    @cached_property
    def _by_name(self) -> dict[str, Channel]:
        return {channel.name: channel for channel in self.channels}

    @cached_property
    def _layout(self) -> tuple[tuple[str, slice, int | None], ...]:
        layout = tuple(_lay_out(self.channels))
        end = max(max(slot.stop, (mask or 0) + 1) for _, slot, mask in layout)
        if end > self.raw_width:
            raise ValueError(f"{self.node_type} channels need {end} slots, raw width is {self.raw_width}")
        return layout


def _lay_out(channels: tuple[Channel, ...]) -> Iterator[tuple[str, slice, int | None]]:
    position = 0
    for index, channel in enumerate(channels):
        size = len(channel.labels) if channel.kind is Kind.MULTI_HOT else channel.width
        slot = slice(position, position + size)
        position += size
        if channel.kind is Kind.CATEGORY or not channel.masked:
            yield channel.name, slot, None
            continue
        following = channels[index + 1 : index + 2]
        shares_next = bool(channel.mask_group) and any(c.mask_group == channel.mask_group for c in following)
        if shares_next:
            rest = [c for c in channels[index + 1 :] if c.mask_group == channel.mask_group]
            yield channel.name, slot, position + sum(c.width for c in rest)
        else:
            yield channel.name, slot, position
            position += 1


def _category(
    name: str,
    source: str,
    width: int,
    vocabulary: str,
    capacity: int,
    *,
    static: bool = False,
    mandatory: bool = True,
) -> Channel:
    return Channel(
        name,
        source,
        kind=Kind.CATEGORY,
        width=width,
        vocabulary=vocabulary,
        capacity=capacity,
        static=static,
        mandatory=mandatory,
    )


_LAYER = NodeSchema(
    "layer",
    raw_width=128,
    encoded_width=256,
    channels=(
        _category("layer_type", "blueprint.graph.layers.type", 32, "layer_type", 1024, static=True),
        _category(
            "activation_type", "blueprint.graph.layers.activation_type", 16, "activation_type", 1024, static=True
        ),
        Channel(
            "input_channels",
            "blueprint.graph.layers.input_channels",
            transform=Transform.LOG1P_Z,
            prior="channels",
            static=True,
        ),
        Channel(
            "output_channels",
            "blueprint.graph.layers.output_channels",
            transform=Transform.LOG1P_Z,
            prior="channels",
            static=True,
        ),
        Channel(
            "depth", "blueprint.graph.layers.depth", transform=Transform.RATIO, total=Total.DEPTH, static=True
        ),
        Channel("dropout_rate", "blueprint.graph.layers.dropout_rate", transform=Transform.CLAMP01, static=True),
        Channel(
            "parameter_count",
            "blueprint.graph.layers.parameter_count",
            transform=Transform.LOG1P_Z,
            prior="parameter_count",
            static=True,
        ),
        Channel(
            "weight_norm",
            "state.layers.weight_norm",
            transform=Transform.EWMA,
            prior="layer_weight_norm",
            fallback="blueprint.graph.layers.weight_norm",
        ),
        Channel(
            "gradient_norm",
            "state.layers.gradient_norm",
            transform=Transform.EWMA,
            prior="layer_gradient_norm",
            fallback="blueprint.graph.layers.gradient_norm",
        ),
        Channel("update_frequency", "state.layers.update_frequency", transform=Transform.CLAMP01),
        Channel(
            "gradient_variance",
            "state.layers.gradient_variance",
            transform=Transform.LOG1P_Z,
            prior="gradient_variance",
        ),
        _category("gradient_instability", "state.layers.gradient_instability", 4, "gradient_instability", 64),
        Channel(
            "latency_ms",
            "state.layers.latency_ms",
            transform=Transform.EWMA,
            prior="layer_latency",
            fallback="blueprint.graph.layers.latency_ms",
        ),
        # The budget of a layer is the time of the whole forward pass.
        Channel(
            "latency_budget_utilisation",
            "state.layers.latency_ms",
            transform=Transform.RATIO,
            total=Total.SUM,
            fallback="blueprint.graph.layers.latency_ms",
        ),
        Channel(
            "data_flow_volume",
            "state.layers.data_flow_volume",
            transform=Transform.LOG1P_Z,
            prior="data_flow_volume",
        ),
        Channel("loss_contribution", "state.layers.loss_contribution", transform=Transform.RATIO, total=Total.SUM),
        Channel(
            "step_loss",
            "state.training_loss",
            transform=Transform.EWMA,
            prior="loss",
            fallback="state.training_metrics.loss",
        ),
        Channel(
            "step_gradient_norm",
            "state.training_metrics.gradient_norm",
            transform=Transform.EWMA,
            prior="gradient_norm",
        ),
        Channel(
            "step_samples_per_s",
            "state.training_metrics.samples_per_s",
            transform=Transform.EWMA,
            prior="samples_per_s",
        ),
        Channel(
            "step_hook_latency_ms",
            "state.training_metrics.hook_latency_ms",
            transform=Transform.EWMA,
            prior="hook_latency_ms",
        ),
        Channel("bsds_risk_score", "sheet.risk_score", transform=Transform.CLAMP01),
        _category("hazard_band", "sheet.hazard_band", 8, "hazard_class", 64),
        _category("handling_class", "sheet.handling_class", 8, "handling_class", 64),
        _category("resource_tier", "sheet.resource_profile", 8, "resource_profile", 64),
    ),
)

_SEED = NodeSchema(
    "seed",
    raw_width=64,
    encoded_width=256,
    channels=(
        _category("seed_id", "seed.seed_id", 6, "seed", 1024),
        _category("lifecycle_stage", "seed.stage", 8, "lifecycle_stage", 64),
        Channel("monitoring_scope", "seed.monitoring_scope", transform=Transform.CLAMP01, default=0.5),
        Channel("activity_level", "seed.activity_level", transform=Transform.CLAMP01, default=0.5),
        Channel("success_rate", "seed.success_rate", transform=Transform.CLAMP01, default=0.5),
        Channel(
            "risk_tolerance",
            "seed.risk_tolerance",
            transform=Transform.CLAMP01,
            default=0.5,
            fallback="seed.metrics.risk_tolerance",
        ),
        Channel("alpha", "seed.alpha", transform=Transform.CLAMP01, fallback="seed.metrics.alpha"),
        Channel("risk_score", "seed.risk_score", transform=Transform.CLAMP01, default=0.5),
        Channel(
            "gradient_norm",
            "seed.gradient_norm",
            transform=Transform.EWMA,
            prior="seed_gradient_norm",
            mandatory=False,
        ),
        Channel(
            "learning_rate",
            "seed.learning_rate",
            transform=Transform.LOG1P_Z,
            prior="learning_rate",
            mandatory=False,
        ),
        Channel("layer_depth", "seed.layer_depth", transform=Transform.RATIO, total=Total.DEPTH, mandatory=False),
        Channel("age_epochs", "seed.age_epochs", transform=Transform.EWMA, prior="seed_age", mandatory=False),
        _category("specialization", "seed.specialization", 4, "specialization", 64),
        _category("alpha_schedule", "seed.alpha_schedule.method", 4, "schedule", 64),
        Channel("schedule_start", "seed.alpha_schedule.start", transform=Transform.CLAMP01, mask_group="schedule"),
        Channel("schedule_end", "seed.alpha_schedule.end", transform=Transform.CLAMP01, mask_group="schedule"),
        Channel(
            "allowed_blending_methods",
            "seed.allowed_blending_methods",
            kind=Kind.MULTI_HOT,
            labels=BLENDING_METHODS,
        ),
        Channel("optimizer_families", "seed.optimizer_families", kind=Kind.MULTI_HOT, labels=OPTIMIZER_FAMILIES),
        # Whether it has any, not the multi-hot of 002 §2: no source names exemptions that could have positions.
        Channel("isolation_exemptions", "seed.isolation_exemptions", kind=Kind.FLAG),
        Channel("quarantine_only", "seed.quarantine_only", kind=Kind.FLAG),
        # Whether a policy placed it. A category would have an untrained row for every new policy.
        Channel("policy_version", "seed.policy_version", kind=Kind.FLAG),
        # Not mandatory: a dormant seed has no kernel.
        _category("blueprint_tier", "kernel.descriptor.tier", 1, "blueprint_tier", 64, mandatory=False),
        _category("safe_handling", "kernel_sheet.handling_class", 1, "handling_class", 64, mandatory=False),
    ),
)

_ACTIVATION = NodeSchema(
    "activation",
    raw_width=32,
    encoded_width=128,
    channels=(
        _category("activation_type", "blueprint.graph.activations.type", 16, "activation_type", 1024, static=True),
        # Learned stand-in where the blueprint names no activation: embedded by the feeding layer's type.
        Channel(
            "fallback_layer_type",
            "blueprint.graph.layers.type",
            kind=Kind.CATEGORY,
            width=4,
            vocabulary="layer_type",
            capacity=1024,
            static=True,
            mandatory=False,
            counted=False,
        ),
        Channel(
            "saturation_rate",
            "state.activations.saturation_rate",
            transform=Transform.CLAMP01,
            fallback="blueprint.graph.activations.saturation_rate",
        ),
        Channel(
            "gradient_flow",
            "state.activations.gradient_flow",
            transform=Transform.CLAMP01,
            fallback="blueprint.graph.activations.gradient_flow",
        ),
        Channel(
            "computational_cost",
            "blueprint.graph.activations.computational_cost",
            transform=Transform.LOG1P_Z,
            prior="activation_cost",
            static=True,
        ),
        Channel(
            "saturation_events",
            "state.activations.saturation_events",
            transform=Transform.LOG1P_Z,
            prior="saturation_events",
        ),
        Channel("stability", "state.activations.stability", transform=Transform.CLAMP01),
    ),
)

_PARAMETER = NodeSchema(
    "parameter",
    raw_width=16,
    encoded_width=256,
    channels=(
        Channel(
            "parameter_count",
            "blueprint.graph.parameters.parameter_count",
            transform=Transform.LOG1P_Z,
            prior="parameter_count",
            static=True,
        ),
        Channel(
            "learning_rate",
            "state.parameters.learning_rate",
            transform=Transform.LOG1P_Z,
            prior="learning_rate",
            fallback="blueprint.graph.parameters.learning_rate",
        ),
        Channel(
            "momentum",
            "state.parameters.momentum",
            transform=Transform.Z,
            prior="momentum",
            fallback="blueprint.graph.parameters.momentum",
        ),
        Channel(
            "gradient_variance",
            "state.parameters.gradient_variance",
            transform=Transform.LOG1P_Z,
            prior="gradient_variance",
            fallback="blueprint.graph.parameters.gradient_variance",
        ),
        _category(
            "optimizer_family",
            "blueprint.graph.parameters.optimizer_family",
            1,
            "optimizer_family",
            256,
            static=True,
        ),
        Channel(
            "convergence_rate",
            "state.parameters.convergence_rate",
            transform=Transform.EWMA,
            prior="convergence_rate",
            mask_group="update",
        ),
        Channel(
            "update_magnitude",
            "state.parameters.update_magnitude",
            transform=Transform.EWMA,
            prior="update_magnitude",
            mask_group="update",
        ),
        _category("compile_status", "blueprint.compiled.status", 1, "compile_status", 64, static=True),
        _category("resource_class", "sheet.resource_profile", 1, "resource_profile", 64),
        Channel("cooldown", "sheet.mitigation.cooldown_ms", transform=Transform.LOG1P_Z, prior="cooldown_ms"),
    ),
)

_BLUEPRINT = NodeSchema(
    "blueprint",
    raw_width=16,
    encoded_width=256,
    channels=(
        _category("blueprint_id", "kernel.blueprint_id", 2, "blueprint", 1024),
        _category("tier", "kernel.descriptor.tier", 2, "blueprint_tier", 64),
        _category("hazard_band", "kernel_sheet.hazard_band", 2, "hazard_class", 64),
        _category("handling_class", "kernel_sheet.handling_class", 1, "handling_class", 64),
        _category("compile_status", "kernel.compiled.status", 1, "compile_status", 64, mandatory=False),
        Channel("risk", "kernel_sheet.risk_score", transform=Transform.CLAMP01, fallback="kernel.descriptor.risk"),
        Channel("candidate_score", "run.candidate_score", transform=Transform.NONE),
        Channel("stage", "kernel.descriptor.stage", transform=Transform.RATIO, total=6.0, mask_group="descriptor"),
        Channel("quarantine_only", "kernel.descriptor.quarantine_only", kind=Kind.FLAG, mask_group="descriptor"),
        Channel(
            "approval_required", "kernel.descriptor.approval_required", kind=Kind.FLAG, mask_group="descriptor"
        ),
    ),
)

_CONTEXT = NodeSchema(
    "context",
    raw_width=16,
    encoded_width=256,
    channels=(
        Channel("loss_mean", "run.loss_mean", transform=Transform.EWMA, prior="loss"),
        Channel("throughput_mean", "run.throughput_mean", transform=Transform.EWMA, prior="samples_per_s"),
        Channel(
            "gpu_utilisation",
            "state.training_metrics.gpu_util_percent",
            transform=Transform.CLAMP01,
            total=100.0,
            mandatory=False,
            fallback="state.hardware_context.utilization_percent",
        ),
        Channel(
            "cpu_utilisation", "state.training_metrics.cpu_util_percent", transform=Transform.CLAMP01, total=100.0
        ),
        Channel("conservative_mode", "run.conservative", kind=Kind.FLAG, masked=False, counted=False),
        Channel(
            "sla_breaches", "run.sla_breaches", transform=Transform.LOG1P_Z, prior="sla_breaches", counted=False
        ),
        Channel("weatherlight_health", "run.weatherlight_health", transform=Transform.CLAMP01, mandatory=False),
        Channel("latency_budget_utilisation", "run.latency_budget_utilisation", transform=Transform.RATIO),
    ),
    coverage_name="global",
)

#: Node schemas by node type, in the order in which the model lists them.
NODES: dict[str, NodeSchema] = {
    schema.node_type: schema for schema in (_LAYER, _SEED, _ACTIVATION, _PARAMETER, _BLUEPRINT, _CONTEXT)
}
