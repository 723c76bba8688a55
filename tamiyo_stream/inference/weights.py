"""The network's weights, folded and laid out for the plan executor (design §8).

Everything is derived from the reference's parameters when it is first needed and kept: a plan needs only some of
the layouts, and the engine's warm-up asks for most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.inference.blocks import Role
from tamiyo_stream.inference.products import DTYPES, Linear, Precision, Products
from tamiyo_stream.model.encoders import NodeEncoder
from tamiyo_stream.model.heads import HEADS_BY_INPUT, Heads
from tamiyo_stream.model.stages import Stage

T = TypeVar("T")

#: Types whose states and messages are float32 whatever the products' type: each of their few nodes is read by a
#: head on its own, where the layers' rounding errors cancel in the mean over a graph.
EXACT_TYPES: tuple[str, ...] = ("seed", "blueprint")


class Norm(NamedTuple):
    """A LayerNorm over the last axis, float32."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, width]; statistics are float32 whatever its type."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Cache:
    """Values by key, made at first use."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of ``key``, made now if it is new."""
        if key not in self._values:
            self._values[key] = make()
        return cast("T", self._values[key])


class EncoderWeights:
    """An encoder whose categories are looked up as rows of ``table @ W``: no row is assembled first."""

    def __init__(self, encoder: NodeEncoder, products: Products) -> None:
        schema = NODES[encoder.node_type]
        self.name = encoder.node_type
        self.width = encoder.linear.out_features
        weight = encoder.linear.weight.detach()
        blocks = [schema.slots[channel.name] for channel in schema.categories]
        rows, starts, start = [], [], 0
        for block, table in zip(blocks, encoder.categories.tables.values(), strict=True):
            embedding = cast("Tensor", table.weight).detach()
            rows.append(embedding @ weight[:, block].T)
            starts.append(start)
            start += len(embedding)
        numeric = weight.clone()
        for block in blocks:
            numeric[:, block] = 0
        self.dtype = dtype_of(self.name, products)
        self.linear = products.linear(numeric, encoder.linear.bias, precision=precision_of(self.name, products))
        self.norm = norm_of(encoder.norm)
        self.index_slots = encoder.categories.index_slots
        self.last_rows = encoder.categories.last_rows
        self.first_rows = torch.tensor(starts, device=weight.device)
        self.table = torch.cat(rows).to(self.dtype) if rows else None


class HeadWeights:
    """All heads, in float32: those that read the same rows are one product per layer, the last block-diagonal.

    The zeros between the blocks cost less than a call for every head.
    """

    def __init__(self, heads: Heads, products: Products) -> None:
        self._heads = heads
        self._layers = {
            key: _joint_layers([cast("nn.Sequential", getattr(heads, name)) for name in names], products)
            for key, names in HEADS_BY_INPUT.items()
        }

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every output but the attention masses from the heads' inputs, named as in ``HEADS_BY_INPUT``."""
        raw: dict[str, Tensor] = {}
        for key, names in HEADS_BY_INPUT.items():
            first, last, widths = self._layers[key]
            parts = torch.split_with_sizes(last(first(inputs[key]).relu_()), widths, dim=1)
            raw |= {name: part.contiguous() for name, part in zip(names, parts, strict=True)}
        return cast("dict[str, Tensor]", self._heads.outputs(raw, inputs["graph"]))


def _joint_layers(heads: Sequence[nn.Sequential], products: Products) -> tuple[Linear, Linear, list[int]]:
    """Return the first layers of ``heads`` as one, the last ones as one, and the widths of the latter."""
    first = [cast("nn.Linear", head[0]) for head in heads]
    last = [cast("nn.Linear", head[-1]) for head in heads]
    widths = [layer.out_features for layer in last]
    blocks = torch.zeros(sum(widths), sum(layer.in_features for layer in last), device=first[0].weight.device)
    row = column = 0
    for layer in last:
        blocks[row : row + layer.out_features, column : column + layer.in_features] = layer.weight
        row, column = row + layer.out_features, column + layer.in_features
    return (
        products.linear(torch.cat([layer.weight for layer in first]), _biases(first), precision="fp32"),
        products.linear(blocks, _biases(last), precision="fp32"),
        widths,
    )


def _biases(layers: Sequence[nn.Linear]) -> Tensor:
    return torch.cat([layer.bias for layer in layers])


class StageWeights:
    """One stage. ``widths`` of the node types it updates; ``heads`` and ``slope`` of its attention, 0 without."""

    def __init__(self, stage: Stage, products: Products) -> None:
        self.widths: dict[str, int] = {name: cast("Any", root).out_features for name, root in stage.roots.items()}
        convolution: Any = next(iter(stage.convs.convs.values())).conv
        self.heads: int = convolution.heads if stage.attends else 0
        self.slope: float = convolution.negative_slope if stage.attends else 0.0
        self._stage = stage
        self._products = products
        self._cache = Cache()
        self._shares = {name: 1 / sum(name == target for *_, target in stage.edge_types) for name in stage.roots}

    def root(self, name: str) -> Linear:
        """``W_t h + b``."""
        return self._cache.get(("root", name), lambda: self._linear(self._stage.roots[name], name))

    def residual(self, name: str) -> Linear | None:
        """The projection of the residual, None where it is the identity."""
        if name not in self._stage.residuals:
            return None
        return self._cache.get(("residual", name), lambda: self._linear(self._stage.residuals[name], name))

    def norm(self, edge_type: EdgeType) -> Norm:
        """The relation's LayerNorm with the share 1/R of its target type in it."""
        return self._cache.get(("norm", edge_type), lambda: self._norm(edge_type))

    def projection(self, edge_type: EdgeType) -> Linear:
        """[N, in] -> [N, width]: GraphSAGE's linear; in GAT the mean of the heads, for weights of 1."""
        return self._cache.get(("projection", edge_type), lambda: self._projection(edge_type))

    def joint_projection(self, edge_type: EdgeType) -> Linear:
        """GAT after aggregation: [N, heads * in] -> [N, width], the mean of the heads."""
        return self._cache.get(("joint", edge_type), lambda: self._joint(edge_type))

    def head_projection(self, edge_type: EdgeType) -> Linear:
        """GAT before aggregation: [N, in] -> [N, heads * width], of which the sum over heads is the message."""
        return self._cache.get(("heads", edge_type), lambda: self._by_head(edge_type))

    def scores(self, roles: tuple[Role, ...]) -> Linear:
        """[N, in] -> [N, roles * heads]: ``x @ (W a)`` for each role of the node type."""
        return self._cache.get(("scores", roles), lambda: self._scores(roles))

    def edge_scores(self, edge_types: tuple[EdgeType, ...]) -> Tensor:
        """[attributes of all ``edge_types``, heads] float32."""
        return self._cache.get(
            ("edge", edge_types), lambda: torch.cat([self._edge_scores(edge_type) for edge_type in edge_types])
        )

    def _module(self, edge_type: EdgeType) -> Any:
        return self._stage.convs.convs[edge_type]

    def _linear(self, module: Any, target: str) -> Linear:
        return self._product(module.weight, module.bias, target)

    def _product(self, weight: Tensor, bias: Tensor | None, target: str) -> Linear:
        precision = precision_of(target, self._products)
        product = self._products.linear(weight, bias, precision=precision)
        if precision == self._products.precision:
            return product
        return lambda x: product(x.float())

    def _norm(self, edge_type: EdgeType) -> Norm:
        norm, share = norm_of(self._module(edge_type).norm), self._shares[edge_type[2]]
        return Norm(norm.weight * share, norm.bias * share, norm.epsilon)

    def _projection(self, edge_type: EdgeType) -> Linear:
        conv = self._module(edge_type).conv
        if not self._stage.attends:
            return self._linear(conv.lin_l, edge_type[2])
        return self._product(self._by_heads(conv).mean(dim=0), conv.bias, edge_type[2])

    def _joint(self, edge_type: EdgeType) -> Linear:
        conv = self._module(edge_type).conv
        weight = self._by_heads(conv).permute(1, 0, 2).reshape(conv.out_channels, -1)
        return self._product(weight / conv.heads, conv.bias, edge_type[2])

    def _by_head(self, edge_type: EdgeType) -> Linear:
        conv = self._module(edge_type).conv
        bias = (conv.bias / conv.heads).repeat(conv.heads)
        return self._product(conv.lin_src.weight / conv.heads, bias, edge_type[2])

    def _by_heads(self, conv: Any) -> Tensor:
        weight: Tensor = conv.lin_src.weight.detach()
        return weight.view(conv.heads, conv.out_channels, -1)

    def _scores(self, roles: tuple[Role, ...]) -> Linear:
        return self._products.linear(torch.cat([self._role(role) for role in roles]), None)

    def _role(self, role: Role) -> Tensor:
        conv = self._module(role.edge_type).conv
        linear, attention = (conv.lin_src, conv.att_src) if role.is_source else (conv.lin_dst, conv.att_dst)
        return folded(linear, attention)

    def _edge_scores(self, edge_type: EdgeType) -> Tensor:
        conv = self._module(edge_type).conv
        return folded(conv.lin_edge, conv.att_edge).T


def precision_of(name: str, products: Products) -> Precision:
    """Return the precision of states and messages of node type ``name``."""
    return "fp32" if name in EXACT_TYPES else products.precision


def dtype_of(name: str, products: Products) -> torch.dtype:
    """Return the type of states and messages of node type ``name``."""
    return DTYPES[precision_of(name, products)]


def folded(linear: nn.Linear, attention: Tensor) -> Tensor:
    """Return ``a W`` [heads, in] of ``linear`` [heads * width, in] and ``attention`` [1, heads, width]."""
    heads, width = attention.shape[1:]
    by_head = linear.weight.detach().view(heads, width, -1)
    return torch.einsum("hci,hc->hi", by_head, attention.detach()[0])


def norm_of(norm: nn.LayerNorm) -> Norm:
    """Return a copy of ``norm``."""
    return Norm(norm.weight.detach().float().clone(), norm.bias.detach().float().clone(), norm.eps)
