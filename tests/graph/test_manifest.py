"""The feature manifest: complete, plain JSON, and another digest for every other layout."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tamiyo_stream.graph import manifest
from tamiyo_stream.graph.features import NODES, Kind, Transform
from tamiyo_stream.graph.manifest import SCHEMA_VERSION, digest_of_manifest, feature_manifest, manifest_digest
from tamiyo_stream.graph.relations import RELATIONS

CHANNELS = [(node_type, channel.name) for node_type, schema in NODES.items() for channel in schema.channels]
#: Of the tables as they are.
DIGEST = manifest_digest()
ATTRIBUTES = [(index, a.name) for index, relation in enumerate(RELATIONS) for a in relation.attributes]


def digest_with_channel(monkeypatch, node_type, name, changes):
    """Return the digest of the tables in which one channel has ``changes``."""
    schema = NODES[node_type]
    channels = tuple(replace(c, **changes) if c.name == name else c for c in schema.channels)
    monkeypatch.setattr(manifest, "NODES", {**NODES, node_type: replace(schema, channels=channels, raw_width=999)})
    widened = feature_manifest()
    widened["nodes"][node_type]["raw_width"] = schema.raw_width
    return digest_of_manifest(widened)


def digest_with_attribute(monkeypatch, index, name, changes):
    """Return the digest of the tables in which one edge attribute has ``changes``."""
    relation = RELATIONS[index]
    attributes = tuple(replace(a, **changes) if a.name == name else a for a in relation.attributes)
    changed = replace(relation, attributes=attributes)
    monkeypatch.setattr(manifest, "RELATIONS", (*RELATIONS[:index], changed, *RELATIONS[index + 1 :]))
    return digest_of_manifest(feature_manifest())


def test_it_is_plain_json():
    content = feature_manifest()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["schema_version"] == SCHEMA_VERSION == 1


def test_digest_is_sha256_of_the_compact_json_with_sorted_keys():
    text = json.dumps(feature_manifest(), sort_keys=True, separators=(",", ":"))
    assert manifest_digest() == hashlib.sha256(text.encode()).hexdigest()


def test_every_slot_of_every_node_row_has_an_owner():
    for node_type, node in feature_manifest()["nodes"].items():
        owned = {slot for channel in node["channels"] for slot in range(*channel["slots"])}
        owned |= {channel["mask"] for channel in node["channels"] if channel["mask"] is not None}
        assert owned == set(range(node["used_width"])), node_type
        assert node["used_width"] <= node["raw_width"]


def test_every_slot_of_every_edge_row_has_an_owner():
    for relation in feature_manifest()["relations"]:
        owned = {slot for attribute in relation["attributes"] for slot in range(*attribute["slots"])}
        owned |= {attribute["mask"] for attribute in relation["attributes"]}
        assert owned == set(range(relation["width"])), relation["edge_type"]


def test_a_category_says_its_vocabulary_and_table_size():
    layer_type = feature_manifest()["nodes"]["layer"]["channels"][0]
    assert layer_type == {
        "name": "layer_type", "source": "blueprint.graph.layers.type", "fallback": "", "kind": "category",
        "transform": "none", "prior": "", "total": 1.0, "labels": [], "default": 0.0, "slots": [0, 32],
        "mask": None, "vocabulary": "layer_type", "capacity": 1024, "mandatory": True,
    }  # fmt: skip


def test_a_relation_says_its_reverse_and_both_aggregations():
    by_type = {tuple(relation["edge_type"]): relation for relation in feature_manifest()["relations"]}
    monitors = by_type["seed", "monitors", "layer"]
    assert monitors["reverse_type"] == ["layer", "monitored_by", "seed"]
    assert (monitors["aggregation"], monitors["reverse_aggregation"]) == ("max", "mean")


@pytest.mark.parametrize(("node_type", "name"), CHANNELS)
def test_digest_changes_with_any_property_of_any_channel(monkeypatch, node_type, name):
    channel = NODES[node_type].channel(name)
    masked = not channel.masked if channel.kind is not Kind.CATEGORY else channel.masked
    changes = [
        {"name": f"{name}_"},
        {"source": "state.elsewhere"},
        {"fallback": "state.elsewhere"},
        {"width": channel.width + 1} if channel.kind is not Kind.MULTI_HOT else {"labels": channel.labels[:-1]},
        {"masked": masked} if channel.kind is not Kind.CATEGORY else {"capacity": channel.capacity + 1},
        {"transform": Transform.RATIO if channel.transform is not Transform.RATIO else Transform.EWMA},
        {"default": 0.25},
        {"prior": "elsewhere"},
        {"total": 7.0},
        {"mandatory": not channel.mandatory},
    ]
    digests = [digest_with_channel(monkeypatch, node_type, name, change) for change in changes]
    assert len({DIGEST, *digests}) == len(changes) + 1
    assert digest_with_channel(monkeypatch, node_type, name, {}) == DIGEST


@pytest.mark.parametrize(("index", "name"), ATTRIBUTES)
def test_digest_changes_with_any_property_of_any_edge_attribute(monkeypatch, index, name):
    attribute = next(a for a in RELATIONS[index].attributes if a.name == name)
    changes = [
        {"name": f"{name}_"},
        {"source": "state.elsewhere"},
        {"labels": (*attribute.labels, "one", "more")},
        {"transform": Transform.CLAMP01 if attribute.transform is not Transform.CLAMP01 else Transform.EWMA},
        {"prior": "elsewhere"},
        {"total": 7.0},
        {"mandatory": not attribute.mandatory},
    ]
    digests = [digest_with_attribute(monkeypatch, index, name, change) for change in changes]
    assert len({DIGEST, *digests}) == len(changes) + 1
    assert digest_with_attribute(monkeypatch, index, name, {}) == DIGEST


@pytest.mark.parametrize("node_type", NODES)
def test_digest_changes_when_two_channels_change_places(monkeypatch, node_type):
    schema = NODES[node_type]
    seen = {DIGEST}
    for position in range(len(schema.channels) - 1):
        swapped = list(schema.channels)
        swapped[position : position + 2] = reversed(swapped[position : position + 2])
        changed = replace(schema, channels=tuple(swapped), raw_width=schema.raw_width + 2)
        monkeypatch.setattr(manifest, "NODES", {**NODES, node_type: changed})
        content = feature_manifest()
        content["nodes"][node_type]["raw_width"] = schema.raw_width
        seen.add(digest_of_manifest(content))
    assert len(seen) == len(schema.channels)


def test_it_needs_no_torch_and_is_the_same_in_every_process():
    code = (
        "import sys\nfrom tamiyo_stream.graph.manifest import manifest_digest\n"
        "print(manifest_digest(), 'torch' in sys.modules, 'msgspec' in sys.modules)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{manifest_digest()} False False\n"}
