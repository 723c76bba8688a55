"""Categories become embeddings at the places that the feature table gives."""

from __future__ import annotations

import pytest
import torch

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.model.encoders import CategoryEmbedding, NodeEncoder

SCHEMAS = [pytest.param(schema, id=name) for name, schema in NODES.items()]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_only_category_blocks_are_replaced(schema) -> None:
    module = CategoryEmbedding(schema)
    x = torch.randn(5, schema.raw_width)
    for channel in schema.categories:
        x[:, schema.slots[channel.name]] = 0.0
        x[:, schema.slots[channel.name].start] = 3.0
    out = module(x)
    replaced = torch.zeros(schema.raw_width, dtype=torch.bool)
    for channel in schema.categories:
        block = schema.slots[channel.name]
        replaced[block] = True
        assert torch.equal(out[:, block], module.tables[channel.name].weight[3].expand(5, -1))
    assert out.shape == x.shape
    assert torch.equal(out[:, ~replaced], x[:, ~replaced])


def test_unknown_has_a_learned_row_of_its_own() -> None:
    schema = NODES["layer"]
    module = CategoryEmbedding(schema)
    out = module(torch.zeros(1, schema.raw_width))
    assert torch.equal(out[0, schema.slots["layer_type"]], module.tables["layer_type"].weight[0])
    assert out[0, schema.slots["layer_type"]].any()


@pytest.mark.parametrize(("index", "row"), [(5000.0, 1023), (1e30, None), (-4.0, 0), (float("nan"), None)])
def test_an_index_outside_the_table_is_clamped(index: float, row: int | None) -> None:
    schema = NODES["layer"]
    module = CategoryEmbedding(schema)
    x = torch.zeros(1, schema.raw_width)
    x[0, schema.slots["layer_type"].start] = index
    block = module(x)[0, schema.slots["layer_type"]]
    assert torch.isfinite(block).all()
    if row is not None:
        assert torch.equal(block, module.tables["layer_type"].weight[row])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_encoder_is_linear_relu_layer_norm(schema) -> None:
    encoder = NodeEncoder(schema, 16)
    x = torch.zeros(3, schema.raw_width)
    embedded = encoder.categories(x)
    expected = torch.nn.functional.layer_norm(
        torch.relu(embedded @ encoder.linear.weight.T + encoder.linear.bias), (16,)
    )
    torch.testing.assert_close(encoder(x), expected)
