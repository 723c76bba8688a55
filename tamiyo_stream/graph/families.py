"""Families: the feature and relation tables as fields, divided by when they change; compiled once (design §6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tamiyo_stream.graph.blocks import Field, Target
from tamiyo_stream.graph.features import NODES, Channel, Kind, NodeSchema, Transform
from tamiyo_stream.graph.relations import RELATIONS, Attribute, Relation


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A node type or forward relation: its coverage name and its fields.

    ``static``: read once per structure; ``objects``: read again when a seed, a kernel or a sheet of theirs is
    replaced; ``step``: read in every step. A seed's moving statistics are ``step`` fields: its export stays, what
    it is normalised with does not. ``relation`` is None for a node type.
    """

    name: str
    target: Target
    relation: Relation | None = field(repr=False)
    static: tuple[Field, ...] = field(repr=False)
    objects: tuple[Field, ...] = field(repr=False)
    step: tuple[Field, ...] = field(repr=False)

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields of the family."""
        return self.static + self.objects + self.step


#: Families that describe seeds or kernels, which are read one by one; ``run.`` there speaks of each kernel.
_OF_OBJECTS = frozenset(
    {"node.seed", "node.blueprint", "edges.seed_monitors", "edges.seed_param_allowed", "edges.parameter_targets"}
)
#: Sources of one value for all nodes or edges, in the other families.
_SCALAR_SOURCES = ("sheet.", "run.", "state.training_")


def is_scalar(entry: Field) -> bool:
    """Return whether a step field has one value for all nodes or edges."""
    return entry.sources[0].startswith(_SCALAR_SOURCES)


def _family(
    name: str, target: Target, relation: Relation | None, fields: Iterable[tuple[Channel | Attribute, Field]]
) -> Family:
    parts: dict[str, list[Field]] = {"static": [], "objects": [], "step": []}
    for declared, entry in fields:
        settles = name in _OF_OBJECTS and entry.transform is not Transform.EWMA
        parts["static" if declared.static else "objects" if settles else "step"].append(entry)
    return Family(name, target, relation, *(tuple(parts[key]) for key in ("static", "objects", "step")))


def _node_family(schema: NodeSchema) -> Family:
    prefix = schema.family
    return _family(
        f"node.{prefix}",
        schema.node_type,
        None,
        [
            (
                channel,
                Field(
                    f"{prefix}.{channel.name}",
                    _sources(channel),
                    channel.kind,
                    channel.transform,
                    channel.default,
                    channel.vocabulary,
                    channel.labels,
                    channel.prior,
                    channel.total,
                    schema.slots[channel.name].start,
                    schema.mask_slots.get(channel.name),
                    channel.mandatory,
                    channel.counted,
                ),
            )
            for channel in schema.channels
        ],
    )


def _edge_family(relation: Relation) -> Family:
    prefix = relation.family
    return _family(
        prefix,
        relation.edge_type,
        relation,
        [
            (
                attribute,
                Field(
                    f"{prefix}.{attribute.name}",
                    _sources(attribute),
                    Kind.MULTI_HOT if attribute.labels else Kind.NUMERIC,
                    attribute.transform,
                    0.0,
                    "",
                    attribute.labels,
                    attribute.prior,
                    attribute.total,
                    relation.slots[attribute.name].start,
                    relation.mask_slots[attribute.name],
                    attribute.mandatory,
                    attribute.counted,
                ),
            )
            for attribute in relation.attributes
        ],
    )


def _sources(declared: Channel | Attribute) -> tuple[str, ...]:
    return (declared.source, declared.fallback) if declared.fallback else (declared.source,)


#: All families, node types first, each in the order of its table.
FAMILIES: tuple[Family, ...] = (*map(_node_family, NODES.values()), *map(_edge_family, RELATIONS))
#: Families by node type or forward relation.
BY_TARGET: dict[Target, Family] = {family.target: family for family in FAMILIES}
