"""The relation table: every edge type, its attributes, its reverse and its aggregation (design §6).

Sources: requirements ``000`` ("Quick-reference schema") and ``002`` §3; their union is ``domain.md`` B3. Each
relation exists forward and reverse; the reverse has the same attributes. An attribute is followed by its mask slot
(1 = present).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from schemas.enums import BLENDING_METHODS, OPTIMIZER_FAMILIES
from tamiyo_stream.graph.features import Total, Transform

EdgeType = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One edge attribute: where it comes from and how it is normalised. Multi-hots have ``labels``.

    The fields mean what they mean for a :class:`~tamiyo_stream.graph.features.Channel`. A column of nodes is read
    at the end of the edge that has its node type, at the source end where both have.
    """

    name: str
    source: str
    transform: Transform = Transform.NONE
    labels: tuple[str, ...] = ()
    prior: str = ""
    total: float | Total = 1.0
    static: bool = False
    mandatory: bool = True
    fallback: str = ""
    counted: bool = True

    @property
    def width(self) -> int:
        """Value slots of the attribute, its mask slot not counted."""
        return len(self.labels) or 1


@dataclass(frozen=True)
class Relation:
    """A forward relation ``source -name-> target``.

    Attributes:
        aggregation: how neighbours are combined in the GraphSAGE stages, ``mean`` or ``max``; the reverse always
            takes the mean (requirements ask for max on monitors and influences; ``domain.md`` §10.1 item 9).
        aliases: names that other sources use for the same relation.
        coverage_name: name of the relation in coverage keys where it is not ``source_name`` (``domain.md`` §6.4).
    """

    source: str
    name: str
    target: str
    reverse_name: str
    attributes: tuple[Attribute, ...]
    aggregation: str = "mean"
    aliases: tuple[str, ...] = ()
    coverage_name: str = ""

    @property
    def family(self) -> str:
        """Prefix of the relation's coverage keys, as ``edges.layer_connects``."""
        return f"edges.{self.coverage_name or f'{self.source}_{self.name}'}"

    @property
    def edge_type(self) -> EdgeType:
        """PyG triple, source to target."""
        return (self.source, self.name, self.target)

    @property
    def reverse_type(self) -> EdgeType:
        """PyG triple of the reverse."""
        return (self.target, self.reverse_name, self.source)

    @cached_property
    def slots(self) -> dict[str, slice]:
        """Value slots by attribute name."""
        return {
            attribute.name: slice(start, start + attribute.width)
            for attribute, start in zip(self.attributes, self._starts, strict=True)
        }

    @cached_property
    def mask_slots(self) -> dict[str, int]:
        """Mask slot by attribute name."""
        return {name: slot.stop for name, slot in self.slots.items()}

    @cached_property
    def width(self) -> int:
        """Width of an edge-attribute row, masks included."""
        return sum(attribute.width + 1 for attribute in self.attributes)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        starts, position = [], 0
        for attribute in self.attributes:
            starts.append(position)
            position += attribute.width + 1
        return tuple(starts)


_CONDITIONS = (
    Attribute("latency_budget_utilisation", "run.latency_budget_utilisation", Transform.RATIO),
    Attribute("conservative_mode", "run.conservative", counted=False),
)

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "layer",
        "connects",
        "layer",
        "connected_from",
        (
            Attribute(
                "connection_strength",
                "state.edges.connection_strength",
                Transform.RATIO,
                total=Total.FAN_OUT,
                fallback="blueprint.graph.adjacency.connects.weight",
            ),
            Attribute(
                "data_flow_volume",
                "state.edges.data_flow_volume",
                Transform.RATIO,
                total=Total.MAX,
                fallback="state.layers.data_flow_volume",
            ),
            Attribute(
                "latency_ms",
                "state.edges.latency_ms",
                Transform.RATIO,
                total=Total.MAX,
                fallback="state.layers.latency_ms",
            ),
            Attribute("residual_flag", "blueprint.graph.adjacency.connects.residual", static=True),
        ),
    ),
    Relation(
        "seed",
        "monitors",
        "layer",
        "monitored_by",
        (
            Attribute("monitoring_frequency", "seed.monitored_layers.monitoring_frequency", Transform.CLAMP01),
            Attribute(
                "adaptation_trigger_threshold",
                "seed.monitored_layers.adaptation_trigger_threshold",
                Transform.CLAMP01,
            ),
            Attribute("quarantine_flag", "seed.quarantine_only"),
        ),
        aggregation="max",
    ),
    Relation(
        "layer",
        "feeds",
        "activation",
        "fed_by",
        (
            Attribute("activation_frequency", "state.activations.activation_frequency", Transform.CLAMP01),
            Attribute(
                "saturation_events",
                "state.activations.saturation_events",
                Transform.LOG1P_Z,
                prior="saturation_events",
            ),
        ),
        aliases=("activates", "energizes"),
    ),
    Relation(
        "activation",
        "influences",
        "layer",
        "influenced_by",
        (
            Attribute(
                "gradient_contribution",
                "state.activations.gradient_contribution",
                Transform.RATIO,
                total=Total.MAX,
            ),
            Attribute(
                "nonlinearity_strength",
                "state.activations.nonlinearity_strength",
                Transform.CLAMP01,
                fallback="blueprint.graph.activations.nonlinearity_strength",
            ),
        ),
        aggregation="max",
        aliases=("affects",),
    ),
    Relation(
        "parameter",
        "tunes",
        "layer",
        "tuned_by",
        (
            Attribute(
                "update_magnitude", "state.parameters.update_magnitude", Transform.EWMA, prior="update_magnitude"
            ),
            Attribute(
                "convergence_rate", "state.parameters.convergence_rate", Transform.EWMA, prior="convergence_rate"
            ),
        ),
    ),
    Relation(
        "activation",
        "configures",
        "parameter",
        "configured_by",
        (
            Attribute(
                "link_weight",
                "blueprint.graph.adjacency.configures.weight",
                Transform.RATIO,
                total=Total.MAX,
                static=True,
            ),
        ),
    ),
    Relation(
        "parameter",
        "modulates",
        "activation",
        "modulated_by",
        (
            Attribute(
                "magnitude",
                "blueprint.graph.adjacency.modulates.weight",
                Transform.RATIO,
                total=Total.MAX,
                static=True,
            ),
            Attribute("effect", "state.parameters.update_magnitude", Transform.EWMA, prior="update_magnitude"),
        ),
    ),
    Relation(
        "parameter",
        "targets",
        "blueprint",
        "targeted_by",
        # The categorical target: the kernel's registry index as a share of the registry's capacity.
        (Attribute("target", "run.registry_share", Transform.RATIO),),
    ),
    Relation(
        "seed",
        "allowed",
        "parameter",
        "allowed_for",
        (
            Attribute("blending_methods", "seed.allowed_blending_methods", labels=BLENDING_METHODS),
            Attribute("optimizer_families", "seed.optimizer_families", labels=OPTIMIZER_FAMILIES),
        ),
        aliases=("seed_param_allowed",),
        coverage_name="seed_param_allowed",
    ),
    Relation(
        "context",
        "conditions",
        "layer",
        "conditioned_by",
        _CONDITIONS,
        aliases=("global_influences",),
        coverage_name="global_influences",
    ),
    Relation(
        "context",
        "conditions",
        "seed",
        "conditioned_by",
        _CONDITIONS,
        aliases=("global_operates",),
        coverage_name="global_operates",
    ),
)

#: Forward relation of every edge type, forward types first.
BY_EDGE_TYPE: dict[EdgeType, Relation] = {
    **{relation.edge_type: relation for relation in RELATIONS},
    **{relation.reverse_type: relation for relation in RELATIONS},
}
#: All edge types, forward then reverse, in the order in which the model lists them.
EDGE_TYPES: tuple[EdgeType, ...] = tuple(BY_EDGE_TYPE)


def aggregation_of(edge_type: EdgeType) -> str:
    """Return ``mean`` or ``max``: the GraphSAGE aggregation of an edge type."""
    relation = BY_EDGE_TYPE[edge_type]
    return relation.aggregation if edge_type == relation.edge_type else "mean"
