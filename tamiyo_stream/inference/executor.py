"""Evaluates the reference network along an execution plan: the same numbers from fewer, larger operations.

What is saved, exactly (design §8): a message is made once however many nodes receive it; attention scores are
``x @ (W a)``; aggregation is a fused gather and reduce, before or after the projection; nothing is attended where
there is one neighbour. The order of floating-point sums differs, nothing else. In bfloat16 weights, states and
messages have that type; sums, softmax, scores of edges, LayerNorm statistics and the heads are float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tamiyo_stream.inference.blocks import (
    PIECE_ROWS,
    AttentionBlock,
    AttentionPlan,
    Bags,
    Block,
    MaxBlock,
    ProjectedBlock,
    RowsBlock,
    StagePlan,
)
from tamiyo_stream.inference.collate import Batch
from tamiyo_stream.inference.plan import ExecutionPlan
from tamiyo_stream.inference.products import Precision, Products, plain
from tamiyo_stream.inference.weights import EXACT_TYPES, EncoderWeights, HeadWeights, StageWeights
from tamiyo_stream.inference.workspace import Workspace
from tamiyo_stream.model.encoders import NodeEncoder
from tamiyo_stream.model.network import EXPLAINED_TYPES, TamiyoGNN
from tamiyo_stream.model.stages import Stage

#: Layer rows that are summed one after the other in the mean over a graph; their sums are then summed.
_POOLED_ROWS = 64
#: ``embedding_bag``'s number for the mode "sum".
_SUM = 0


class PlanExecutor:
    """Forwards of ``network`` in evaluation mode, along a plan.

    Weights are copied, each when it is first needed: the network must not change meanwhile; new weights need a new
    executor. For one thread at a time. Batch and plan must be on the network's device.

    Args:
        network: the reference.
        products: how matrix products are computed; torch's own where not given.
        precision: the products' precision.

    Raises:
        ValueError: ``products`` are of another precision.
    """

    def __init__(
        self, network: TamiyoGNN, *, products: Products | None = None, precision: Precision = "fp32"
    ) -> None:
        products = products or plain(precision)
        if products.precision != precision:
            raise ValueError(
                f"products {products.name!r} are {products.precision}, precision is {precision}; choose products "
                "for it with self_test.choose_products"
            )
        self._dtype = products.dtype
        self._workspace = Workspace(next(network.parameters()).device)
        with torch.inference_mode():
            self._heads = HeadWeights(network.heads, products)
            self._encoders = {
                name: EncoderWeights(cast("NodeEncoder", encoder), products)
                for name, encoder in network.encoders.items()
            }
        self._stages = [StageWeights(cast("Stage", stage), products) for stage in network.stages]

    @torch.inference_mode()
    def __call__(self, batch: Batch, plan: ExecutionPlan) -> dict[str, Tensor]:
        """Return every head and the attention masses, float32, as ``TamiyoGNN.forward(..., with_attention=True)``.

        The batch must have rows for every node type, and ``plan`` must be its own.
        """
        states = {name: self._encode(weights, batch.x_dict[name]) for name, weights in self._encoders.items()}
        mass = plan.sole_mass.clone()
        for number, (weights, stage) in enumerate(zip(self._stages, plan.stages, strict=True)):
            states |= self._run(number, weights, stage, states, batch, mass)
        layers, seeds, kernels = (states[name].full.float() for name in ("layer", "seed", "blueprint"))
        pooled = _mean_of_graphs(layers, batch.offsets["layer"])
        outputs = self._heads({"graph": pooled, "seeds": seeds, "blueprints": kernels})
        lengths = [batch.x_dict[name].shape[0] for name in EXPLAINED_TYPES]
        shares = zip(EXPLAINED_TYPES, torch.split_with_sizes(mass, lengths), strict=True)
        return outputs | {f"{name}_attention": share for name, share in shares}

    def _state(self, name: str, stage: int, rows: int, width: int) -> _State:
        """Return memory for the states after ``stage``; those of the stage before stay as they are."""
        buffer = f"{name} {stage % 2}"
        h = self._workspace.rows(buffer, rows, width, self._dtype)
        exact = name in EXACT_TYPES and self._dtype != torch.float32
        return _State(h, self._workspace.rows(f"{buffer} exact", rows, width, torch.float32) if exact else h)

    def _encode(self, weights: EncoderWeights, x: Tensor) -> _State:
        state = self._state(weights.name, -1, x.shape[0], weights.width)
        for rows, out in zip(_split(x), state.split(), strict=True):
            hidden = weights.linear(rows.to(weights.dtype))
            if weights.table is not None:
                index = rows.index_select(1, weights.index_slots).long().clamp_(min=0).minimum(weights.last_rows)
                index += weights.first_rows
                hidden += functional.embedding_bag(index, weights.table, mode="sum")
            out.write(weights.norm(hidden.relu_()))
        return state

    def _run(
        self,
        number: int,
        weights: StageWeights,
        plan: StagePlan,
        states: Mapping[str, _State],
        batch: Batch,
        mass: Tensor,
    ) -> dict[str, _State]:
        """Return the new states of the stage's target types; add its attention to ``mass``."""
        h_dict = {name: state.h for name, state in states.items()}
        attention = None
        if plan.attention is not None:
            alpha = _attention(weights, plan.attention, h_dict, batch)
            explained = alpha[: plan.attention.explained].mean(dim=1)
            mass.index_add_(0, plan.attention.mass_row, explained)
            attention = alpha.flatten().index_select(0, plan.attention.order).to(self._dtype)
        updated = {}
        for name, width in weights.widths.items():
            blocks = plan.blocks.get(name, ())
            updated[name] = self._state(name, number, h_dict[name].shape[0], width)
            rows, dtype = sum(block.rows for block in blocks), updated[name].full.dtype
            table = self._workspace.rows(f"messages {dtype}", rows, width, dtype)
            _write_messages(table, weights, blocks, h_dict, attention)
            _update(updated[name], weights, name, states[name], table, plan.received.get(name))
        return updated


class _State(NamedTuple):
    """States [N, width] of a node type: as products read them, and as the residual adds up; mostly one tensor."""

    h: Tensor
    full: Tensor

    def split(self) -> list[_State]:
        if self.h is self.full:
            return [_State(rows, rows) for rows in _split(self.h)]
        return list(map(_State, _split(self.h), _split(self.full)))

    def write(self, values: Tensor) -> None:
        self.full.copy_(values)
        if self.h is not self.full:
            self.h.copy_(values)


def _write_messages(
    table: Tensor,
    weights: StageWeights,
    blocks: Sequence[Block],
    h_dict: Mapping[str, Tensor],
    attention: Tensor | None,
) -> None:
    """Fill ``table`` with the blocks' messages, one block after the other."""
    row = 0
    for block in blocks:
        norm = weights.norm(block.edge_type)
        for messages in _pieces(weights, block, h_dict[block.edge_type[0]], attention):
            end = row + messages.shape[0]
            table[row:end] = norm(messages)
            row = end


def _update(
    out: _State,
    weights: StageWeights,
    name: str,
    old: _State,
    table: Tensor,
    received: Sequence[Bags] | None,
) -> None:
    """Write ``res(h) + GELU(W h + messages)`` into ``out``."""
    root, residual = weights.root(name), weights.residual(name)
    for number, (rows, new) in enumerate(zip(old.split(), out.split(), strict=True)):
        hidden = root(rows.full)
        if received is not None:
            hidden += _sum(received[number], table)
        kept = rows.full if residual is None else residual(rows.full)
        torch.add(functional.gelu(hidden), kept, out=new.full)
        if new.h is not new.full:
            new.h.copy_(new.full)


def _pieces(weights: StageWeights, block: Block, h: Tensor, attention: Tensor | None) -> Iterator[Tensor]:
    """Yield a block's messages before their LayerNorm, in order."""
    key = block.edge_type
    match block:
        case RowsBlock(bags=bags):
            project = weights.projection(key)
            yield from map(project, _split(h) if bags is None else (_sum(bag, h) for bag in bags))
        case MaxBlock(levels=levels):
            for left, right in levels:
                h = torch.maximum(h.index_select(0, left), h.index_select(0, right))
            yield from map(weights.projection(key), _split(h))
        case ProjectedBlock(sources=sources, bags=bags):
            projected = weights.projection(key)(_rows(h, sources))
            yield from (_sum(bag, projected) for bag in bags)
        case AttentionBlock():
            yield from _attended(weights, block, h, cast("Tensor", attention))


def _attended(weights: StageWeights, block: AttentionBlock, h: Tensor, attention: Tensor) -> Iterator[Tensor]:
    key, heads = block.edge_type, weights.heads
    entry = block.edges.start * heads
    project = None if block.projected else weights.joint_projection(key)
    if block.projected:
        h = weights.head_projection(key)(_rows(h, block.sources)).view(-1, weights.widths[key[2]])
    for bag in block.bags:
        summed = _sum(bag, h, attention[entry : entry + bag.entries])
        yield summed if project is None else project(summed.view(bag.rows // heads, -1))
        entry += bag.entries


def _attention(weights: StageWeights, plan: AttentionPlan, h_dict: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the attention [E, heads] float32 of the stage's attended edges: a softmax over each target's."""
    scores = torch.cat(
        [weights.scores(roles)(h_dict[name]).view(-1, weights.heads) for name, roles in plan.roles.items()]
    ).float()
    attributes = [_rows(batch.edge_attr_dict[key], rows).flatten() for key, rows in plan.attributes.items()]
    logits = _sum(plan.attribute_bags, weights.edge_scores(tuple(plan.attributes)), torch.cat(attributes))
    logits += scores.index_select(0, plan.of_source)
    logits += scores.index_select(0, plan.of_target)
    functional.leaky_relu_(logits, weights.slope)
    highest = logits.new_full((plan.bags.rows, weights.heads), -math.inf)
    highest.scatter_reduce_(0, plan.bag[:, None].expand_as(logits), logits, "amax")
    logits -= highest.index_select(0, plan.bag)
    logits.exp_()
    totals = _sum(plan.bags, logits).reciprocal_()
    return logits.mul_(totals.index_select(0, plan.bag))


def _sum(bags: Bags, table: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the (weighted) sums [M, width] of ``bags`` over rows of ``table``, accumulated in float32."""
    weights = bags.weights if weights is None else weights
    if weights is not None:
        weights = weights.to(table.dtype)
    # The function behind functional.embedding_bag: its checks take as long as a small bag.
    summed: Tensor = torch.embedding_bag(table, bags.index, bags.offsets, False, _SUM, False, weights)[0]
    return summed


def _split(rows: Tensor) -> list[Tensor]:
    count = rows.shape[0]
    if 0 < count <= PIECE_ROWS:
        return [rows]
    return [rows[start : start + PIECE_ROWS] for start in range(0, count, PIECE_ROWS)]


def _rows(table: Tensor, index: Tensor | None) -> Tensor:
    return table if index is None else table.index_select(0, index)


def _mean_of_graphs(layers: Tensor, offsets: np.ndarray) -> Tensor:
    """Return the mean [B, width] over each graph's layers, zero where it has none.

    Rows are summed in chunks that start with the graph: more exact than one long sum, and the same in any batch.
    """
    counts = np.diff(offsets)
    chunks = -(-counts // _POOLED_ROWS)
    first = np.cumsum(chunks) - chunks
    within = np.arange(chunks.sum()) - np.repeat(first, chunks)
    starts = np.repeat(offsets[:-1], chunks) + within * _POOLED_ROWS
    device = layers.device
    sums = _sum(Bags(torch.arange(layers.shape[0], device=device), torch.from_numpy(starts).to(device)), layers)
    totals = _sum(Bags(torch.arange(sums.shape[0], device=device), torch.from_numpy(first).to(device)), sums)
    return totals / torch.from_numpy(np.maximum(counts, 1)).to(device)[:, None]
