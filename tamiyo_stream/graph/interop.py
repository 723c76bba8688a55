"""Interop: a step graph as PyTorch Geometric's ``HeteroData``. The only graph module that imports torch."""

from __future__ import annotations

import torch
from torch_geometric.data import HeteroData

from tamiyo_stream.graph.structures import StepGraph


def to_hetero_data(step_graph: StepGraph) -> HeteroData:
    """Return the graph as ``HeteroData``: ``x`` [N, raw width], ``edge_index`` [2, E] and ``edge_attr``.

    ``x`` and ``edge_attr`` share memory with the step graph: treat them as read-only.
    """
    data = HeteroData()
    for node_type, x in step_graph.x_dict.items():
        data[node_type].x = torch.from_numpy(x)
    for edge_type, edges in step_graph.topology.edges.items():
        index = torch.stack([torch.from_numpy(edges.source), torch.from_numpy(edges.target)])
        data[edge_type].edge_index = index
        data[edge_type].edge_attr = torch.from_numpy(step_graph.edge_attr_dict[edge_type])
    return data
