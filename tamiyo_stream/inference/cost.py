"""What a forward along a plan has to compute and to move at least: its roofline's numerators.

``count_flops / measured product rate + count_bytes / measured copy rate`` is a time that no evaluation of the same
algebra gets below on that machine; the benchmark reports the time as a multiple of it. Sums over neighbours are
bound by memory and are counted in bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.inference.blocks import AttentionBlock, Block, MaxBlock, ProjectedBlock, RowsBlock, StagePlan
from tamiyo_stream.inference.collate import Batch
from tamiyo_stream.inference.plan import ExecutionPlan
from tamiyo_stream.inference.products import DTYPES, Precision
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.network import stage_widths


class _Product(NamedTuple):
    """A product of [rows, inner] by [inner, outer]."""

    rows: int
    inner: int
    outer: int


def count_flops(plan: ExecutionPlan, batch: Batch, config: TamiyoGNNConfig | None = None) -> int:
    """Return the operations of all products of ``plan``, a multiply-add counting two."""
    return sum(2 * rows * inner * outer for rows, inner, outer in _products(plan, batch, config))


def count_bytes(
    plan: ExecutionPlan, batch: Batch, precision: Precision, config: TamiyoGNNConfig | None = None
) -> int:
    """Return the bytes that must be moved, each array once where it is made and once where it is read.

    Those are: features, weights, states, the rows that are gathered, the messages.
    """
    size = DTYPES[precision].itemsize
    values = sum(inner * outer for _, inner, outer in _products(plan, batch, config))
    widths = stage_widths(config or TamiyoGNNConfig())
    counts = {name: len(rows) for name, rows in batch.x_dict.items()}
    values += sum(counts[name] * width for name, width in widths[0].items())
    states = dict(widths[0])
    for stage, updated in zip(plan.stages, widths[1:], strict=True):
        values += sum(counts[name] * (states[name] + width) for name, width in updated.items())
        values += sum(_moved(block, states, updated) for blocks in stage.blocks.values() for block in blocks)
        for name, bags in stage.received.items():
            values += updated[name] * sum(len(bag.index) for bag in bags)
        states |= updated
    features = sum(counts[name] * schema.raw_width for name, schema in NODES.items())
    return values * size + features * 4


def _products(plan: ExecutionPlan, batch: Batch, config: TamiyoGNNConfig | None) -> Iterator[_Product]:
    config = config or TamiyoGNNConfig()
    widths = stage_widths(config)
    counts = {name: len(rows) for name, rows in batch.x_dict.items()}
    for name, schema in NODES.items():
        yield _Product(counts[name], schema.raw_width, widths[0][name])
    states: dict[str, int] = {}
    for stage, (before, updated) in zip(plan.stages, pairwise(widths), strict=True):
        states |= before
        for name, width in updated.items():
            yield _Product(counts[name], states[name], width * (1 if states[name] == width else 2))
        yield from _of_messages(stage, states, updated, counts, config.attention_heads)


def _of_messages(
    stage: StagePlan, states: dict[str, int], updated: dict[str, int], counts: dict[str, int], heads: int
) -> Iterator[_Product]:
    for blocks in stage.blocks.values():
        for block in blocks:
            source, _, target = block.edge_type
            yield _of_block(block, states[source], updated[target], counts[source], heads)
    if stage.attention is not None:
        for name, roles in stage.attention.roles.items():
            yield _Product(counts[name], states[name], len(roles) * heads)


def _of_block(block: Block, inner: int, outer: int, sources: int, heads: int) -> _Product:
    match block:
        case ProjectedBlock():
            return _Product(sources if block.sources is None else len(block.sources), inner, outer)
        case AttentionBlock(projected=True):
            return _Product(sources if block.sources is None else len(block.sources), inner, outer * heads)
        case AttentionBlock():
            return _Product(block.rows, inner * heads, outer)
        case RowsBlock() | MaxBlock():
            return _Product(block.rows, inner, outer)


def _moved(block: Block, states: dict[str, int], updated: dict[str, int]) -> int:
    """Return the values that are gathered for a block, and those of its messages."""
    source, _, target = block.edge_type
    projected = isinstance(block, ProjectedBlock) or (isinstance(block, AttentionBlock) and block.projected)
    width = updated[target] if projected else states[source]
    messages = block.rows * updated[target]
    match block:
        case MaxBlock(levels=levels):
            return messages + width * 2 * len(levels[0][0])
        case RowsBlock(bags=None):
            return messages + width * block.rows
        case RowsBlock(bags=bags) | ProjectedBlock(bags=bags) | AttentionBlock(bags=bags):
            return messages + width * sum(len(bag.index) for bag in bags or ())
