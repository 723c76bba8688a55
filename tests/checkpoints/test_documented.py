"""docs/simic.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tamiyo_stream.checkpoints.checkpoint import ACTIONS
from tamiyo_stream.checkpoints.document import document_of
from tamiyo_stream.checkpoints.refusal import Reason
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import RELATIONS, Relation
from tamiyo_stream.model.config import POLICY_PARAM_NAMES
from tests.checkpoints.samples import sample_checkpoint

TEXT = (Path(__file__).parents[2] / "docs" / "simic.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(reason: Reason) -> None:
    assert f"`{reason}`" in TEXT


@pytest.mark.parametrize("node_type", NODES)
def test_the_width_of_every_node_type_is_given(node_type: str) -> None:
    assert f'| `x_dict["{node_type}"]` | [N, {NODES[node_type].raw_width}] |' in TEXT


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: "-".join(relation.edge_type))
def test_the_width_of_every_relation_is_given(relation: Relation) -> None:
    rows = [line for line in TEXT.splitlines() if f"{relation.source} {relation.name} " in line]
    assert len(rows) == 1
    assert relation.target in rows[0]
    assert f"({relation.reverse_name})" in rows[0]
    assert rows[0].endswith(f"| {relation.width} |")


@pytest.mark.parametrize("field", [*document_of(sample_checkpoint()), "state_dict"])
def test_every_field_of_the_document_is_explained(field: str) -> None:
    assert f"`{field}`" in TEXT


def test_the_action_table_is_given() -> None:
    for index, action in enumerate(ACTIONS[:8]):
        assert f"{index} `{action}`" in TEXT
    assert f"8–31 `{ACTIONS[8]}` … `{ACTIONS[31]}`" in TEXT
    assert ", ".join(f"`{name}`" for name in POLICY_PARAM_NAMES) in TEXT
