"""The reference pages are current, complete, and name a sender for every source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schemas.catalogue import MESSAGES
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.reference import DERIVED, ORIGINS, render_features, render_relations
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import EDGE_TYPES, RELATIONS
from tests.graph.samples import sample_blueprint, sample_packet, sample_run, sample_seed, sample_tables

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference"
DECLARED = [
    *(channel for schema in NODES.values() for channel in schema.channels),
    *(attribute for relation in RELATIONS for attribute in relation.attributes),
]
SOURCES = {source for entry in DECLARED for source in (entry.source, entry.fallback) if source}


@pytest.mark.parametrize(("name", "render"), [("features", render_features), ("relations", render_relations)])
def test_the_page_is_current(name, render):
    page = (REFERENCE / f"{name}.md").read_text(encoding="utf-8")
    assert page == render(), "run `tamiyo-stream reference`"


def test_every_source_has_a_sender_and_every_sender_a_source():
    assert {source.split(".")[0] for source in SOURCES} == set(ORIGINS)


def test_what_is_derived_is_explained():
    assert {source for source in SOURCES if source.startswith("run.")} == set(DERIVED)


def test_the_messages_named_are_received_on_the_stream_named():
    for _, what, stream in ORIGINS.values():
        named = [name for name in re.findall(r"`(\w+)", what) if name in MESSAGES]
        assert not stream or stream in MESSAGES[named[0]].received_on


def test_every_coverage_key_that_a_complete_step_reports_has_one_row():
    blueprint = sample_blueprint()
    graph = GraphBuilder(Registries()).build(
        sample_run(sample_seed()), sample_packet(blueprint), sample_tables(blueprint)
    )
    channels, attributes = rows(render_features()), rows(render_relations())
    keys = [cells[-1].strip("`") for cells in channels + attributes if cells[-1] != "–"]
    assert sorted(keys) == sorted(graph.coverage.keys)
    assert len(channels) + len(attributes) == len(DECLARED)


def test_every_type_of_node_and_edge_is_on_its_page():
    assert all(f"\n## `{node_type}`\n" in render_features() for node_type in NODES)
    assert all(f"`({', '.join(edge_type)})`" in render_relations() for edge_type in EDGE_TYPES)


def test_a_row_says_source_fallback_transform_default_slots_mask_and_key():
    row = next(cells for cells in rows(render_features()) if cells[0] == "`risk_tolerance`")
    assert row == [
        "`risk_tolerance`", "`seed.risk_tolerance`, else `seed.metrics.risk_tolerance`", "numeric",
        "limited to 0…1", "0.5", "20", "21", "no", "yes", "`seed.risk_tolerance`",
    ]  # fmt: skip


def test_a_scaled_value_names_its_statistics():
    row = next(cells for cells in rows(render_features()) if cells[0] == "`momentum`")
    assert row[3] == "z-score by the fixed `momentum` (mean 0.9, standard deviation 0.05); limited to ±6"


def rows(page):
    """Return the cells of every table row of ``page`` that describes a channel or attribute."""
    lines = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return [cells for cells in lines if len(cells) >= 9]
