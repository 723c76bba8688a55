"""Evaluates the reference network along an execution plan: the same numbers from fewer, larger operations.

What is saved, exactly (design §8): attention scores are ``x @ (W a)`` instead of a projection of every
destination; messages are weighted bags, all heads and their mean at once; rows without a neighbour cost nothing.
The order of floating-point sums differs, nothing else. The weights stay the network's own: only the small products
``W a`` are copies, taken when the executor is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GATConv, SAGEConv, global_mean_pool

from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.inference.collate import Batch
from tamiyo_stream.inference.plan import ExecutionPlan, RelationPlan
from tamiyo_stream.model.network import EXPLAINED_TYPES, TamiyoGNN
from tamiyo_stream.model.stages import Stage


class _Scores(NamedTuple):
    """Folded attention of one relation: [in, H] for source and destination, [attributes, H] for the edge."""

    source: Tensor
    target: Tensor
    edge: Tensor
    slope: float


class PlanExecutor:
    """Forwards of ``network`` in evaluation mode, along a plan. Make a new one when the weights change."""

    def __init__(self, network: TamiyoGNN) -> None:
        self._network = network
        self._shares = [_shares(stage) for stage in self._stages()]
        with torch.inference_mode():
            self._scores = [_folded(stage) for stage in self._stages()]

    def __call__(self, batch: Batch, plan: ExecutionPlan) -> dict[str, Tensor]:
        """Return every head and the attention masses, as ``TamiyoGNN.forward(..., with_attention=True)`` does.

        The batch must have rows for every node type, and ``plan`` must be its own.
        """
        network = self._network
        h_dict = {name: encoder(batch.x_dict[name]) for name, encoder in network.encoders.items()}
        mass = {name: batch.x_dict[name].new_zeros(len(batch.x_dict[name])) for name in EXPLAINED_TYPES}
        for number, stage in enumerate(self._stages()):
            h_dict |= self._stage(number, stage, h_dict, batch, plan, mass)
        pooled = _mean_of_graphs(h_dict["layer"], batch)
        outputs = dict(network.heads(pooled, h_dict["seed"], h_dict["blueprint"]))
        return {**outputs, "layer_attention": mass["layer"], "seed_attention": mass["seed"]}

    def _stages(self) -> list[Stage]:
        return [cast("Stage", stage) for stage in self._network.stages]

    def _stage(
        self,
        number: int,
        stage: Stage,
        h_dict: Mapping[str, Tensor],
        batch: Batch,
        plan: ExecutionPlan,
        mass: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        updates = {name: stage.roots[name](h_dict[name]) for name in self._shares[number]}
        for edge_type in stage.edge_types:
            relation = plan.relations.get(edge_type)
            if relation is None:
                continue
            module: Any = stage.convs.convs[edge_type]
            if stage.attends:
                scores = self._scores[number][edge_type]
                alpha = _attention(scores, h_dict, batch.edge_attr_dict[edge_type], relation, edge_type)
                if edge_type[0] in mass:
                    mass[edge_type[0]].index_add_(0, relation.source, alpha.mean(dim=1))
                messages = _attend(module.conv, h_dict[edge_type[0]], alpha, relation)
            else:
                messages = _aggregate(module.conv, h_dict[edge_type[0]], relation)
            target, share = edge_type[2], self._shares[number][edge_type[2]]
            if relation.rows is None:
                updates[target].add_(module.norm(messages), alpha=share)
            else:
                updates[target].index_add_(0, relation.rows, module.norm(messages), alpha=share)
        return {name: _residual(stage, name, h_dict[name]) + functional.gelu(out) for name, out in updates.items()}


def _aggregate(conv: SAGEConv, h: Tensor, relation: RelationPlan) -> Tensor:
    """Return the messages [M, width] of a GraphSAGE relation: aggregate neighbours, then project."""
    neighbours = functional.embedding_bag(relation.source, h, relation.offsets, mode=conv.aggr)
    return cast("Tensor", conv.lin_l(neighbours))


def _attention(
    scores: _Scores,
    h_dict: Mapping[str, Tensor],
    edge_attr: Tensor,
    relation: RelationPlan,
    edge_type: EdgeType,
) -> Tensor:
    """Return the attention [E, H]: a softmax over each destination's edges."""
    of_source = (h_dict[edge_type[0]] @ scores.source).index_select(0, relation.source)
    h_target = h_dict[edge_type[2]]
    h_target = h_target if relation.rows is None else h_target.index_select(0, relation.rows)
    of_target = (h_target @ scores.target).index_select(0, relation.bag)
    logits = functional.leaky_relu(of_source + of_target + edge_attr @ scores.edge, scores.slope)
    bags, heads = relation.bag[:, None].expand_as(logits), logits.shape[1]
    highest = logits.new_full((len(relation), heads), -torch.inf).scatter_reduce_(0, bags, logits, "amax")
    weights = (logits - highest.index_select(0, relation.bag)).exp_()
    totals = logits.new_zeros(len(relation), heads).index_add_(0, relation.bag, weights)
    return weights / totals.index_select(0, relation.bag)


def _attend(conv: GATConv, h: Tensor, alpha: Tensor, relation: RelationPlan) -> Tensor:
    """Return the messages [M, width]: all heads of all edges in one weighted bag, their mean in the weights."""
    heads = alpha.shape[1]
    table = conv.lin_src(h).view(len(h) * heads, -1)
    bag_weights = (alpha / heads).flatten()
    summed = functional.embedding_bag(
        relation.head_source, table, relation.head_offsets, mode="sum", per_sample_weights=bag_weights
    )
    return cast("Tensor", summed + conv.bias)


def _residual(stage: Stage, name: str, h: Tensor) -> Tensor:
    return cast("Tensor", stage.residuals[name](h)) if name in stage.residuals else h


def _shares(stage: Stage) -> dict[str, float]:
    """Return 1 / R by destination type, R the relations of the table into it."""
    return {name: 1 / sum(name == target for *_, target in stage.edge_types) for name in stage.roots}


def _folded(stage: Stage) -> dict[EdgeType, _Scores]:
    if not stage.attends:
        return {}
    return {edge_type: _fold(cast("Any", stage.convs.convs[edge_type]).conv) for edge_type in stage.edge_types}


def _fold(conv: GATConv) -> _Scores:
    def product(linear: nn.Linear, attention: Tensor) -> Tensor:
        by_head = linear.weight.view(conv.heads, conv.out_channels, -1)
        return torch.einsum("hci,hc->ih", by_head, attention[0]).contiguous()

    return _Scores(
        source=product(conv.lin_src, conv.att_src),
        target=product(conv.lin_dst, conv.att_dst),
        edge=product(conv.lin_edge, conv.att_edge),
        slope=conv.negative_slope,
    )


def _mean_of_graphs(layers: Tensor, batch: Batch) -> Tensor:
    if batch.batch_size == 1 and len(layers):
        return layers.mean(dim=0, keepdim=True)
    return cast("Tensor", global_mean_pool(layers, batch.batch, size=batch.batch_size))
