"""Step graphs as PyTorch Geometric's HeteroData."""

from __future__ import annotations

import pytest
import torch

from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import EDGE_TYPES
from tests.graph.samples import sample_blueprint, sample_packet, sample_run, sample_seed, sample_tables


@pytest.mark.parametrize("blueprint", [sample_blueprint(), None], ids=["host", "no-host"])
def test_hetero_data_is_valid_and_shares_memory(blueprint):
    tables = sample_tables(blueprint)
    graph = GraphBuilder(Registries()).build(sample_run(sample_seed()), sample_packet(blueprint), tables)
    data = graph.to_hetero_data()
    assert data.validate()
    assert set(data.edge_types) == set(EDGE_TYPES)
    assert data["seed"].x.data_ptr() == graph.x_dict["seed"].ctypes.data
    for edge_type, edges in graph.topology.edges.items():
        assert torch.equal(data[edge_type].edge_index[0], torch.from_numpy(edges.source))
        assert data[edge_type].edge_attr.shape == graph.edge_attr_dict[edge_type].shape
