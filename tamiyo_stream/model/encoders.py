"""From raw feature rows to hidden states: categories become embeddings, then ``LayerNorm(ReLU(Linear(x)))``.

Where a channel lies in a row is the feature table's affair; the encoder only reads it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tamiyo_stream.graph.features import NodeSchema


def linear(in_width: int, out_width: int) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and zero bias (requirements 000 "Module Skeleton")."""
    layer = nn.Linear(in_width, out_width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class CategoryEmbedding(nn.Module):
    """Replaces each category block of a raw row by the learned embedding of its registry index.

    The first slot of a block holds the index; 0 is *unknown* and has a learned row of its own. An index beyond the
    table's capacity takes the last row. Rows start at unit variance, as the z-scored channels beside them have.
    """

    index_slots: Tensor
    last_rows: Tensor

    def __init__(self, schema: NodeSchema) -> None:
        super().__init__()
        self._blocks = tuple(schema.slots[channel.name] for channel in schema.categories)
        self.tables = nn.ModuleDict(
            {channel.name: nn.Embedding(channel.capacity, channel.width) for channel in schema.categories}
        )
        rows = [channel.capacity - 1 for channel in schema.categories]
        slots = [block.start for block in self._blocks]
        self.register_buffer("index_slots", torch.tensor(slots, dtype=torch.long), persistent=False)
        self.register_buffer("last_rows", torch.tensor(rows, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, raw width] with its category blocks replaced, same shape."""
        if not self._blocks:
            return x
        indices = x.index_select(1, self.index_slots).long().clamp(min=0).minimum(self.last_rows)
        pieces, position = [], 0
        for column, (block, table) in enumerate(zip(self._blocks, self.tables.values(), strict=True)):
            pieces += [x[:, position : block.start], table(indices[:, column])]
            position = block.stop
        return torch.cat([*pieces, x[:, position:]], dim=1)


class NodeEncoder(nn.Module):
    """``h⁰ = LayerNorm(ReLU(Linear(x)))`` of one node type (design §7)."""

    def __init__(self, schema: NodeSchema, width: int) -> None:
        super().__init__()
        self.node_type = schema.node_type
        self._raw_width = schema.raw_width
        self.categories = CategoryEmbedding(schema)
        self.linear = linear(schema.raw_width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` [N, raw width] to [N, width].

        Raises:
            ValueError: the rows have another width than the feature table gives.
        """
        if x.shape[1] != self._raw_width:
            raise ValueError(
                f"x_dict[{self.node_type!r}] has rows of {x.shape[1]} slots, the feature table gives "
                f"{self._raw_width}; build the graph with the same feature table"
            )
        return cast("Tensor", self.norm(self.linear(self.categories(x)).relu()))
