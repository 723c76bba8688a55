"""The output heads: MLPs 128-64-out with ReLU and dropout 0.1 (``domain.md`` B1).

Graph heads read the graph embedding; seed and blueprint heads read their own node's last state, which has already
seen the layers through the relations, so that nothing is concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.encoders import linear


class NetworkOutputs(TypedDict):
    """What a forward returns for B graphs with S seeds, K candidate kernels and L layers in all.

    The attention masses are sums over both GAT stages, not normalised; present only when asked for.
    """

    policy_logits: Tensor  # [B, 32]
    policy_params: Tensor  # [B, 32, 4], in [-1, 1]; names in POLICY_PARAM_NAMES
    risk_logits: Tensor  # [B, 5]
    value_estimate: Tensor  # [B, 1]
    blending_method_logits: Tensor  # [B, 4]
    telemetry_embedding: Tensor  # [B, 64]
    graph_embedding: Tensor  # [B, 128]
    seed_scores: Tensor  # [S]
    seed_schedule: Tensor  # [S, 2], in [-1, 1]: start and end
    blueprint_scores: Tensor  # [K]
    layer_attention: NotRequired[Tensor]  # [L]
    seed_attention: NotRequired[Tensor]  # [S]


#: What each head reads: the embedding of a graph, or the state of a seed or of a candidate kernel.
HEADS_BY_INPUT: Mapping[str, tuple[str, ...]] = {
    "graph": ("policy", "policy_params", "risk", "value", "blending_method", "telemetry"),
    "seeds": ("seed_score", "seed_schedule"),
    "blueprints": ("blueprint_score",),
}


class Heads(nn.Module):
    """All heads. ``graph`` [B, 128], ``seeds`` [S, 128], ``blueprints`` [K, 128]."""

    def __init__(self, config: TamiyoGNNConfig) -> None:
        super().__init__()
        self._params_shape = (config.num_actions, config.num_policy_params)
        self.policy = _mlp(config, config.num_actions)
        self.policy_params = _mlp(config, config.num_actions * config.num_policy_params)
        self.risk = _mlp(config, config.num_risk_classes)
        self.value = _mlp(config, 1)
        self.blending_method = _mlp(config, config.num_blending_methods)
        self.telemetry = _mlp(config, config.telemetry_width)
        self.seed_score = _mlp(config, 1)
        self.seed_schedule = _mlp(config, 2)
        self.blueprint_score = _mlp(config, 1)

    def forward(self, graph: Tensor, seeds: Tensor, blueprints: Tensor) -> NetworkOutputs:
        """Return every head's output; shapes in :class:`NetworkOutputs`."""
        inputs = {"graph": graph, "seeds": seeds, "blueprints": blueprints}
        raw = {name: getattr(self, name)(inputs[key]) for key, names in HEADS_BY_INPUT.items() for name in names}
        return self.outputs(raw, graph)

    def outputs(self, raw: Mapping[str, Tensor], graph: Tensor) -> NetworkOutputs:
        """Return the outputs that the heads' last layers, ``raw`` by name of the head, stand for."""
        return NetworkOutputs(
            policy_logits=raw["policy"],
            policy_params=torch.tanh(raw["policy_params"]).view(-1, *self._params_shape),
            risk_logits=raw["risk"],
            value_estimate=raw["value"],
            blending_method_logits=raw["blending_method"],
            telemetry_embedding=raw["telemetry"],
            graph_embedding=graph,
            seed_scores=raw["seed_score"].squeeze(1),
            seed_schedule=torch.tanh(raw["seed_schedule"]),
            blueprint_scores=raw["blueprint_score"].squeeze(1),
        )


def _mlp(config: TamiyoGNNConfig, out_width: int) -> nn.Sequential:
    return nn.Sequential(
        linear(config.attention_width, config.head_width),
        nn.ReLU(),
        nn.Dropout(config.head_dropout),
        linear(config.head_width, out_width),
    )
