"""One relation's message in one stage: a PyG convolution, its LayerNorm, the mask of nodes with a neighbour.

The modules keep the calling form of ``HeteroConv``: ``x`` is a tensor where source and destination type are the
same, else a pair. Attention uses PyG's own initialisation (Glorot), as SAGE's linear is Xavier-uniform.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch_geometric.nn import GATConv, SAGEConv

from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EdgeType, aggregation_of
from tamiyo_stream.model.config import TamiyoGNNConfig

NodePair = Tensor | tuple[Tensor, Tensor]


class SAGERelation(nn.Module):
    """``LayerNorm(SAGEConv(root_weight=False))``, mean or max by the relation table (Hamilton 2017)."""

    def __init__(self, edge_type: EdgeType, in_widths: tuple[int, int], width: int) -> None:
        super().__init__()
        self.conv = SAGEConv(in_widths, width, aggr=aggregation_of(edge_type), root_weight=False)
        nn.init.xavier_uniform_(self.conv.lin_l.weight)
        nn.init.zeros_(self.conv.lin_l.bias)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: NodePair, edge_index: Tensor, has_neighbour: Tensor) -> Tensor:
        """Return messages [N_target, width], zero where ``has_neighbour`` [N_target, 1] is 0."""
        return cast("Tensor", self.norm(self.conv(_pair(x), edge_index))) * has_neighbour


class GATRelation(nn.Module):
    """``LayerNorm(GATConv)``: heads averaged, edge attributes in the attention, no self-loops (Veličković 2018).

    Source and destination are projected by separate weights, also where their type is the same.
    """

    def __init__(
        self, edge_type: EdgeType, in_widths: tuple[int, int], width: int, config: TamiyoGNNConfig
    ) -> None:
        super().__init__()
        self.conv = GATConv(
            in_widths,
            width,
            heads=config.attention_heads,
            concat=False,
            dropout=config.attention_dropout,
            add_self_loops=False,
            edge_dim=BY_EDGE_TYPE[edge_type].width,
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: NodePair,
        edge_index: Tensor,
        edge_attr: Tensor,
        has_neighbour: Tensor,
        attention_mass: Tensor | None = None,
    ) -> Tensor:
        """Return messages [N_target, width], zero where ``has_neighbour`` [N_target, 1] is 0.

        ``attention_mass`` [N_source], if given, is an accumulator: every edge adds its attention, averaged over
        the heads, to its source node.
        """
        if attention_mass is None:
            out = self.conv(_pair(x), edge_index, edge_attr)
        else:
            out, (_, alpha) = self.conv(_pair(x), edge_index, edge_attr, return_attention_weights=True)
            attention_mass.index_add_(0, edge_index[0], alpha.detach().mean(dim=1).to(attention_mass.dtype))
        return cast("Tensor", self.norm(out)) * has_neighbour


def relation_conv(
    edge_type: EdgeType, in_widths: tuple[int, int], width: int, config: TamiyoGNNConfig, *, attends: bool
) -> nn.Module:
    """Return the message module of ``edge_type``: GAT where the stage attends, else SAGE."""
    if attends:
        return GATRelation(edge_type, in_widths, width, config)
    return SAGERelation(edge_type, in_widths, width)


def _pair(x: Any) -> tuple[Tensor, Tensor]:
    return (x, x) if isinstance(x, Tensor) else x
