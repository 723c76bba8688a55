"""The picture of a model: cells in depth order, folded where there are many, seeds on their layers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tamiyo_stream.hub.picture import MAX_CELLS, block_of, draw
from tests.hub.samples import blueprint, seed


def test_cells_are_in_depth_order_and_lines_follow_the_data() -> None:
    picture = draw(blueprint(["out", "in", "mid"], depth=[2, 0, 1], edges=[(1, 2), (2, 0), (1, 0)]))
    assert [cell.name for cell in picture.cells] == ["in", "mid", "out"]
    assert picture.lines == ((0, 1), (0, 2), (1, 2))
    assert picture.cell_of == {"out": 2, "in": 0, "mid": 1}


def test_without_edges_the_layers_are_a_chain() -> None:
    assert draw(blueprint(["a", "b", "c"])).lines == ((0, 1), (1, 2))


def test_edges_that_point_nowhere_are_not_drawn() -> None:
    assert draw(blueprint(["a", "b"], edges=[(0, 1), (0, 7), (1, 1)])).lines == ((0, 1),)


def test_a_large_model_is_folded_and_keeps_every_layer() -> None:
    names = [f"layers.{number}" for number in range(MAX_CELLS * 3)]
    picture = draw(blueprint(names))
    assert len(picture.cells) == MAX_CELLS
    assert sum(cell.layers for cell in picture.cells) == len(names)
    assert picture.cells[0].name == "layers.0 … layers.2"
    assert picture.cells[0].parameters == 30.0
    assert set(picture.cell_of) == set(names)


def test_a_blueprint_without_layers_has_no_picture() -> None:
    assert draw(blueprint([])) is None


def test_a_seed_sits_on_the_layers_it_watches() -> None:
    picture = draw(blueprint(["a", "b", "c"]))
    assert picture.cells_of(seed("s", "c", "a", "gone")) == [0, 2]
    assert picture.cells_of(seed("s")) == []


def test_attention_is_summed_by_cell() -> None:
    picture = draw(blueprint(["a", "b"]))
    assert picture.shares({"a": 0.25, "gone": 0.5}) == {0: 0.25}


def test_the_largest_known_value_of_a_cell_is_shown() -> None:
    picture = draw(blueprint(["b", "a"], depth=[1, 0]))
    assert picture.largest(np.array([3.0, math.nan])) == [None, 3.0]


def test_a_column_of_another_blueprint_shows_nothing() -> None:
    assert draw(blueprint(["a", "b"])).largest(np.array([1.0])) == [None, None]


@pytest.mark.parametrize(
    ("layer", "block"),
    [("blocks.3.attention.out", "blocks.3"), ("embedding", ""), ("stem.conv", ""), ("layers.7", "")],
)
def test_a_block_is_the_numbered_part_a_layer_is_in(layer: str, block: str) -> None:
    assert block_of(layer) == block
