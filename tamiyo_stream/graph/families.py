"""Families: the feature and relation tables, compiled once at import into blocks (design §6).

Per node type and relation there are three blocks, which differ in how often their values change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tamiyo_stream.graph.blocks import Block, Field
from tamiyo_stream.graph.features import NODES, Channel, Kind, NodeSchema
from tamiyo_stream.graph.relations import RELATIONS, Attribute, Relation


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A node type or forward relation: its coverage name and its blocks.

    ``static``: once per structure; ``scalar``: one value per step for all nodes or edges; ``column``: one value
    each.
    """

    name: str
    prefix: str
    static: Block = field(repr=False)
    scalar: Block = field(repr=False)
    column: Block = field(repr=False)

    @property
    def is_static(self) -> bool:
        """Whether no step changes anything of it."""
        return not (self.scalar.fields or self.column.fields)

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields of the family."""
        return self.static.fields + self.scalar.fields + self.column.fields


_SCALAR_SOURCES = ("sheet.", "run.", "state.training_")
#: Here ``run.`` speaks of each kernel.
_OBJECTS = frozenset({"blueprint", "edges.parameter_targets"})


def _family(name: str, prefix: str, fields: Iterable[tuple[Channel | Attribute, Field]]) -> Family:
    blocks: dict[str, list[Field]] = {"static": [], "scalar": [], "column": []}
    for declared, entry in fields:
        per_node = prefix in _OBJECTS or not entry.sources[0].startswith(_SCALAR_SOURCES)
        blocks["static" if declared.static else "column" if per_node else "scalar"].append(entry)
    return Family(name, prefix, *(Block(blocks[key]) for key in ("static", "scalar", "column")))


def _node_family(schema: NodeSchema) -> Family:
    prefix = schema.family
    return _family(
        f"node.{prefix}",
        prefix,
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
        prefix,
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


#: Families by node type.
NODE_FAMILIES: dict[str, Family] = {node_type: _node_family(schema) for node_type, schema in NODES.items()}
#: Each forward relation with its family.
EDGE_FAMILIES: tuple[tuple[Relation, Family], ...] = tuple(
    (relation, _edge_family(relation)) for relation in RELATIONS
)
