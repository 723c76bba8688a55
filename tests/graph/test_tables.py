"""The feature and relation tables: raw widths, slots that do not overlap, masks, sources that exist."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from schemas.kasmina import MonitoredLayer, SeedState
from schemas.record import Record
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.graph.features import NODES, Kind
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EDGE_TYPES, RELATIONS, aggregation_of

ROOTS = {
    "state": SystemStatePacket,
    "blueprint": Blueprint,
    "sheet": BlueprintSafetySheet,
    "seed": SeedState,
    "kernel": Blueprint,
    "kernel_sheet": BlueprintSafetySheet,
}
DERIVED = {
    "loss_mean", "throughput_mean", "conservative", "sla_breaches", "weatherlight_health",
    "latency_budget_utilisation", "candidate_score", "registry_share",
}  # fmt: skip


def test_raw_widths_are_those_of_the_requirements():
    widths = {name: (schema.raw_width, schema.encoded_width) for name, schema in NODES.items()}
    assert widths == {
        "layer": (128, 256), "seed": (64, 256), "activation": (32, 128), "parameter": (16, 256),
        "blueprint": (16, 256), "context": (16, 256),
    }  # fmt: skip


@pytest.mark.parametrize("schema", NODES.values(), ids=lambda schema: schema.node_type)
def test_value_and_mask_slots_do_not_overlap_and_fit(schema):
    used = [position for slot in schema.slots.values() for position in range(slot.start, slot.stop)]
    used += sorted(set(schema.mask_slots.values()))
    assert sorted(used) == list(range(schema.used_width))
    assert schema.used_width <= schema.raw_width


@pytest.mark.parametrize("schema", NODES.values(), ids=lambda schema: schema.node_type)
def test_channels_share_a_mask_exactly_when_they_share_a_group(schema):
    owners = {}
    for channel in schema.channels:
        if channel.name in schema.mask_slots:
            owners.setdefault(schema.mask_slots[channel.name], set()).add(channel.mask_group or channel.name)
    assert all(len(groups) == 1 for groups in owners.values())
    assert len(owners) == len(set.union(*owners.values()))


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: "-".join(relation.edge_type))
def test_every_edge_attribute_is_followed_by_its_mask(relation):
    used = [position for slot in relation.slots.values() for position in range(slot.start, slot.stop)]
    assert sorted([*used, *relation.mask_slots.values()]) == list(range(relation.width))
    assert all(relation.mask_slots[name] == slot.stop for name, slot in relation.slots.items())


def test_every_relation_exists_in_both_directions():
    assert len(EDGE_TYPES) == len(set(EDGE_TYPES)) == 2 * len(RELATIONS)
    assert all(BY_EDGE_TYPE[relation.reverse_type] is relation for relation in RELATIONS)


def test_monitors_and_influences_take_the_maximum_forward_only():
    maxima = {edge_type for edge_type in EDGE_TYPES if aggregation_of(edge_type) == "max"}
    assert maxima == {("seed", "monitors", "layer"), ("activation", "influences", "layer")}


DECLARED = [
    *(c for schema in NODES.values() for c in schema.channels),
    *(a for r in RELATIONS for a in r.attributes),
]
SOURCES = sorted({source for entry in DECLARED for source in (entry.source, entry.fallback) if source})


@pytest.mark.parametrize("source", SOURCES)
def test_source_is_a_field_of_the_wire_contracts(source):
    root, *path = source.split(".")
    if root == "run":
        assert path[0] in DERIVED
        return
    kind = ROOTS[root]
    for name in path:
        if kind is dict:  # metric maps have open keys
            return
        hint = get_type_hints(kind)[name]
        records = [part for part in _parts(hint) if isinstance(part, type) and issubclass(part, Record)]
        kind = records[0] if records else dict if "dict" in str(hint) else type(None)
        if name == "monitored_layers":
            kind = MonitoredLayer


def _parts(hint):
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def test_categories_name_a_vocabulary_and_multi_hots_their_labels():
    channels = [channel for schema in NODES.values() for channel in schema.channels]
    for channel in channels:
        assert (channel.kind is Kind.CATEGORY) == bool(channel.vocabulary) == (channel.capacity > 1)
        assert (channel.kind is Kind.MULTI_HOT) == bool(channel.labels)
