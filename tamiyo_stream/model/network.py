"""TamiyoGNN, the reference network: encoders, two GraphSAGE and two GAT stages, readout, heads (design §7)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool

from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EdgeType
from tamiyo_stream.graph.structures import NEIGHBOUR_CAPS
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.encoders import NodeEncoder
from tamiyo_stream.model.heads import Heads, NetworkOutputs
from tamiyo_stream.model.stages import Stage

#: Node types that heads read. The last stage updates only these: weights into the others could never be trained.
READOUT_TYPES: tuple[str, ...] = ("layer", "seed", "blueprint")
#: Node types whose attention mass explains a decision.
EXPLAINED_TYPES: tuple[str, ...] = ("layer", "seed")


class StageKind(NamedTuple):
    """Whether a stage's messages are attention (GAT) or GraphSAGE, and the node types that it updates."""

    attends: bool
    targets: tuple[str, ...]


#: The four stages in order; of a graph with edge ranks, stage *k* uses those below ``NEIGHBOUR_CAPS[k]``.
STAGES: tuple[StageKind, ...] = (
    StageKind(attends=False, targets=tuple(NODES)),
    StageKind(attends=False, targets=tuple(NODES)),
    StageKind(attends=True, targets=tuple(NODES)),
    StageKind(attends=True, targets=READOUT_TYPES),
)


def stage_widths(config: TamiyoGNNConfig) -> list[dict[str, int]]:
    """Return the width of the states by node type, of the encoded rows first, then of what each stage updates."""
    hidden = dict.fromkeys(NODES, config.hidden_width) | {"activation": config.activation_width}
    after = [
        dict.fromkeys(kind.targets, config.attention_width) if kind.attends else dict(hidden) for kind in STAGES
    ]
    return [hidden, *after]


class TamiyoGNN(nn.Module):
    """The four-stage heterogeneous graph network (requirements 000 "Module Skeleton", ``domain.md`` B1).

    All widths are explicit: the parameters exist, and can be counted and checked, before the first forward.
    """

    def __init__(self, config: TamiyoGNNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TamiyoGNNConfig()
        widths = stage_widths(config)
        self.encoders = nn.ModuleDict(
            {name: NodeEncoder(schema, widths[0][name]) for name, schema in NODES.items()}
        )
        self.stages = nn.ModuleList(
            Stage(before, after, config, attends=kind.attends)
            for kind, (before, after) in zip(STAGES, pairwise(widths), strict=True)
        )
        self.heads = Heads(config)

    def forward(
        self,
        x_dict: Mapping[str, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        edge_attr_dict: Mapping[EdgeType, Tensor] | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
        *,
        edge_rank_dict: Mapping[EdgeType, Tensor] | None = None,
        with_attention: bool = False,
    ) -> NetworkOutputs:
        """Evaluate one graph, or several as one disconnected graph.

        Args:
            x_dict: [N_t, raw width] float32 by node type; an absent type has no nodes.
            edge_index_dict: [2, E_r] int64 by edge type, sources then targets; empty relations cost nothing.
            edge_attr_dict: [E_r, attribute width] by edge type; what is absent counts as zeros (all missing).
            batch: [N_layer] graph of each layer node (PyG batch vector); None = all belong to one graph.
            batch_size: number of graphs B; None = as many as ``batch`` names, at least one.
            edge_rank_dict: [E_r] rank of each edge among the in-edges of its target, strongest first from 0; stage
                *k* then uses the edges whose rank is below ``NEIGHBOUR_CAPS[k]``. Types that are absent keep all.
            with_attention: also return the attention masses.

        Returns:
            See :class:`NetworkOutputs`. A graph without layers has a zero graph embedding.

        Raises:
            ValueError: rows of a node type have not the width of the feature table.
            KeyError: an edge type that the relation table lacks.
        """
        h_dict = {name: encoder(self._rows(x_dict, name)) for name, encoder in self.encoders.items()}
        edges = {key: index for key, index in edge_index_dict.items() if index.shape[1]}
        attributes = _attributes(edges, edge_attr_dict or {}, h_dict["layer"])
        mass = {
            name: h_dict[name].new_zeros(len(h_dict[name]), dtype=torch.float32)
            for name in EXPLAINED_TYPES
            if with_attention
        }
        for stage, cap in zip(self.stages, NEIGHBOUR_CAPS, strict=True):
            used, rows = _sampled(edges, attributes, edge_rank_dict or {}, cap)
            neighbours = {key: _has_neighbour(index, h_dict[key[2]]) for key, index in used.items()}
            h_dict |= stage(h_dict, used, rows, neighbours, mass)
        outputs: NetworkOutputs = self.heads(
            _pool(h_dict["layer"], batch, batch_size), h_dict["seed"], h_dict["blueprint"]
        )
        if with_attention:
            outputs["layer_attention"], outputs["seed_attention"] = mass["layer"], mass["seed"]
        return outputs

    def _rows(self, x_dict: Mapping[str, Tensor], name: str) -> Tensor:
        if name in x_dict:
            return x_dict[name]
        return next(self.parameters()).new_zeros(0, NODES[name].raw_width)


def build_network(config: TamiyoGNNConfig | None = None, seed: int = 0) -> TamiyoGNN:
    """Return an untrained network in evaluation mode; equal seeds give equal weights.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only: torch.manual_seed would reseed CUDA too
        return TamiyoGNN(config).eval()


def _attributes(
    edges: Mapping[EdgeType, Tensor], given: Mapping[EdgeType, Tensor], like: Tensor
) -> dict[EdgeType, Tensor]:
    return {
        key: given[key] if key in given else like.new_zeros(index.shape[1], BY_EDGE_TYPE[key].width)
        for key, index in edges.items()
    }


def _sampled(
    edges: Mapping[EdgeType, Tensor],
    attributes: Mapping[EdgeType, Tensor],
    ranks: Mapping[EdgeType, Tensor],
    cap: int,
) -> tuple[dict[EdgeType, Tensor], dict[EdgeType, Tensor]]:
    """Return the edges of rank below ``cap`` and their attributes. Rank 0 stays, so no relation loses a target."""
    kept = {key: rank < cap for key, rank in ranks.items() if key in edges}
    return (
        {key: index[:, kept[key]] if key in kept else index for key, index in edges.items()},
        {key: rows[kept[key]] if key in kept else rows for key, rows in attributes.items()},
    )


def _has_neighbour(edge_index: Tensor, targets: Tensor) -> Tensor:
    return targets.new_zeros(len(targets), 1).index_fill_(0, edge_index[1], 1.0)


def _pool(layers: Tensor, batch: Tensor | None, batch_size: int | None) -> Tensor:
    if batch is None:
        batch = torch.zeros(len(layers), dtype=torch.long, device=layers.device)
    if batch_size is None:
        batch_size = int(batch.max()) + 1 if len(batch) else 1
    pooled: Tensor = global_mean_pool(layers, batch, size=batch_size)
    return pooled
