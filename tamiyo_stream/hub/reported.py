"""What Tolaria and Kasmina report beside the state packet, by the names the risk rules know (domain.md §2.4)."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.enums import CircuitBreakerState
from tamiyo_stream.hub.aggregate import Aggregator

#: Metric of Tolaria or Kasmina -> key of ``training_metrics``.
REPORTED: Mapping[str, str] = {
    "tolaria.training.loss": "loss",
    "tolaria.training.accuracy": "accuracy",
    "tolaria.training.latency_ms": "latency_ms",
    "tolaria.hook.latency_ms": "hook_latency_ms",
    "tolaria.lr_controller.current_lr": "optimizer_lr",
    "tolaria.grad_agg.conflict_ratio": "grad_conflict_rate",
    "kasmina.isolation.violations": "kasmina.isolation.violations",
}
KERNEL_BREAKER = "kasmina.breaker.state"


def reported(aggregator: Aggregator, run_id: str, now_ns: int) -> dict[str, float]:
    """Return the fresh values of :data:`REPORTED` for ``run_id``; what is not known is left out."""
    found = {key: aggregator.value(run_id, name.partition(".")[0], name, now_ns) for name, key in REPORTED.items()}
    return {key: value for key, value in found.items() if value is not None}


def kernel_breaker(aggregator: Aggregator, run_id: str, now_ns: int) -> CircuitBreakerState:
    """Return the state of Kasmina's kernel breaker; UNKNOWN where none is reported, or none that exists."""
    value = aggregator.value(run_id, "kasmina", KERNEL_BREAKER, now_ns)
    return next((state for state in CircuitBreakerState if state == value), CircuitBreakerState.UNKNOWN)
