"""What the inference stage hands on: one graph's network output as plain NumPy (design §7)."""

from __future__ import annotations

from dataclasses import dataclass, field

from tamiyo_stream.graph.structures import FloatArray


class NonFiniteOutput(ArithmeticError):
    """The network answered NaN or infinity for a graph: its input or the weights are broken."""

    def __init__(self, run_id: str, head: str) -> None:
        super().__init__(
            f"{head} of run {run_id!r} is not finite; check the graph's features and the checkpoint's weights"
        )
        self.run_id = run_id
        self.head = head


@dataclass(frozen=True, slots=True, eq=False)
class NetworkOutput:
    """All heads for one graph with S seeds, K candidate kernels and L layers.

    ``layer_attention`` and ``seed_attention`` are the attention mass each node received over both GAT stages,
    normalised to sum 1 (zeros where the graph has no such edge): the *why* of a decision.
    """

    policy_logits: FloatArray = field(repr=False)  # [32]
    policy_params: FloatArray = field(repr=False)  # [32, 4], in [-1, 1]
    risk_logits: FloatArray = field(repr=False)  # [5]
    value_estimate: float
    blending_method_logits: FloatArray = field(repr=False)  # [4]
    telemetry_embedding: FloatArray = field(repr=False)  # [64]
    graph_embedding: FloatArray = field(repr=False)  # [128]
    seed_scores: FloatArray = field(repr=False)  # [S]
    seed_schedule: FloatArray = field(repr=False)  # [S, 2], in [-1, 1]
    blueprint_scores: FloatArray = field(repr=False)  # [K]
    layer_attention: FloatArray = field(repr=False)  # [L]
    seed_attention: FloatArray = field(repr=False)  # [S]
    policy_version: str
    policy_digest: str
    latency_ms: float
    batch_size: int
