"""One of the four message-passing stages: its relations and the update of every node type (design §7)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import HeteroConv

from tamiyo_stream.graph.relations import EDGE_TYPES, EdgeType
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.convolutions import relation_conv
from tamiyo_stream.model.encoders import linear


class Stage(nn.Module):
    """``h' = res(h) + Dropout(GELU(W h + (1/R) Σ_r m_r))`` for every destination type of the stage.

    ``R`` is the number of relations into the type in the relation table, present in the graph or not, so that a
    graph that lacks a relation is not rescaled. ``res`` is the identity, a projection where the width changes.

    Args:
        in_widths: width of every node type before the stage.
        out_widths: width after it; the keys are the destination types that are updated.
        config: dropouts and attention heads.
        attends: GAT messages instead of SAGE.
    """

    def __init__(
        self,
        in_widths: Mapping[str, int],
        out_widths: Mapping[str, int],
        config: TamiyoGNNConfig,
        *,
        attends: bool,
    ) -> None:
        super().__init__()
        self.attends = attends
        self.edge_types = tuple(edge_type for edge_type in EDGE_TYPES if edge_type[2] in out_widths)
        self._shares = {name: 1 / sum(name == target for *_, target in self.edge_types) for name in out_widths}
        self._dropout = config.dropout
        self.convs = _hetero_conv(self.edge_types, in_widths, out_widths, config, attends=attends)
        self.roots = nn.ModuleDict({name: linear(in_widths[name], width) for name, width in out_widths.items()})
        self.residuals = nn.ModuleDict(
            {
                name: linear(in_widths[name], width)
                for name, width in out_widths.items()
                if in_widths[name] != width
            }
        )

    def forward(
        self,
        h_dict: Mapping[str, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        edge_attr_dict: Mapping[EdgeType, Tensor],
        has_neighbour_dict: Mapping[EdgeType, Tensor],
        attention_mass: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the new states of the destination types.

        ``edge_index_dict`` holds the relations that have edges; the other mappings have at least its keys.
        ``attention_mass``: accumulators by source type, empty when nobody asks.
        """
        present = [edge_type for edge_type in self.edge_types if edge_type in edge_index_dict]
        arguments = {"has_neighbour_dict": {key: has_neighbour_dict[key] for key in present}}
        if self.attends:
            arguments["edge_attr_dict"] = {key: edge_attr_dict[key] for key in present}
            arguments["attention_mass_dict"] = {
                key: attention_mass[key[0]] for key in present if key[0] in attention_mass
            }
        messages = self.convs(h_dict, {key: edge_index_dict[key] for key in present}, **arguments)
        return {name: self._update(name, h_dict[name], messages.get(name)) for name in self._shares}

    def _update(self, name: str, h: Tensor, messages: Tensor | None) -> Tensor:
        out = self.roots[name](h)
        if messages is not None:
            out = torch.add(out, messages, alpha=self._shares[name])
        out = functional.dropout(functional.gelu(out), self._dropout, training=self.training)
        residual = self.residuals[name](h) if name in self.residuals else h
        return cast("Tensor", residual + out)


def _hetero_conv(
    edge_types: Sequence[EdgeType],
    in_widths: Mapping[str, int],
    out_widths: Mapping[str, int],
    config: TamiyoGNNConfig,
    *,
    attends: bool,
) -> HeteroConv:
    convs = {
        edge_type: relation_conv(
            edge_type,
            (in_widths[edge_type[0]], in_widths[edge_type[2]]),
            out_widths[edge_type[2]],
            config,
            attends=attends,
        )
        for edge_type in edge_types
    }
    with warnings.catch_warnings():
        # The last stage leaves the types that no head reads as they are, and PyG warns about every such type.
        warnings.filterwarnings("ignore", message="There exist node types", category=UserWarning)
        return HeteroConv(convs, aggr="sum")
