"""The feature manifest: what every slot of every node and edge row means, as plain JSON (requirements ``002`` §6).

A checkpoint holds it, so that weights are never fed rows of another layout; commands name it by its digest. It
derives from the feature and relation tables. The numbers behind a channel's ``prior`` are not in it: they are
computed, so their last digit is the platform's.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from tamiyo_stream.graph.features import NODES, Channel, NodeSchema, Total
from tamiyo_stream.graph.relations import RELATIONS, Attribute, Relation, aggregation_of

#: Version of the manifest's own form.
SCHEMA_VERSION = 1


def feature_manifest() -> dict[str, Any]:
    """Return the manifest: ``schema_version``, ``nodes`` by type and ``relations`` in the tables' order.

    Slots are ``[start, stop]`` pairs. ``mask`` is the slot that is 1 where the value is present; None: the value
    is always known, or a category, whose index 0 says that it is missing.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "nodes": {node_type: _node(schema) for node_type, schema in NODES.items()},
        "relations": [_relation(relation) for relation in RELATIONS],
    }


@cache
def manifest_digest() -> str:
    """Return the SHA-256 (hex) of the manifest's compact JSON with sorted keys."""
    return digest_of_manifest(feature_manifest())


def digest_of_manifest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of the compact JSON, keys sorted, of any manifest, as a checkpoint's."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _node(schema: NodeSchema) -> dict[str, Any]:
    return {
        "raw_width": schema.raw_width,
        "encoded_width": schema.encoded_width,
        "used_width": schema.used_width,
        "coverage": schema.family,
        "channels": [_channel(schema, channel) for channel in schema.channels],
    }


def _channel(schema: NodeSchema, channel: Channel) -> dict[str, Any]:
    slot = schema.slots[channel.name]
    return {
        **_shared(channel),
        "kind": channel.kind.value,
        "default": channel.default,
        "slots": [slot.start, slot.stop],
        "mask": schema.mask_slots.get(channel.name),
        "vocabulary": channel.vocabulary,
        "capacity": channel.capacity,
    }


def _relation(relation: Relation) -> dict[str, Any]:
    return {
        "edge_type": list(relation.edge_type),
        "reverse_type": list(relation.reverse_type),
        "aliases": list(relation.aliases),
        "aggregation": aggregation_of(relation.edge_type),
        "reverse_aggregation": aggregation_of(relation.reverse_type),
        "coverage": relation.family,
        "width": relation.width,
        "attributes": [_attribute(relation, attribute) for attribute in relation.attributes],
    }


def _attribute(relation: Relation, attribute: Attribute) -> dict[str, Any]:
    slot = relation.slots[attribute.name]
    return {
        **_shared(attribute),
        "default": 0.0,
        "slots": [slot.start, slot.stop],
        "mask": relation.mask_slots[attribute.name],
    }


def _shared(declared: Channel | Attribute) -> dict[str, Any]:
    return {
        "name": declared.name,
        "source": declared.source,
        "fallback": declared.fallback,
        "transform": declared.transform.value,
        "prior": declared.prior,
        "total": declared.total.value if isinstance(declared.total, Total) else declared.total,
        "labels": list(declared.labels),
        "mandatory": declared.mandatory,
    }
