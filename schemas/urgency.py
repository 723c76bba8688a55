"""Which events make a telemetry packet urgent (``domain.md`` §5.3)."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.enums import MessagePriority, TelemetryLevel

#: Warnings and errors that make their packet urgent; the second half are failures that §5.3 has no name for.
HIGH_EVENTS = frozenset(
    {
        "timeout_inference",
        "timeout_urza",
        "step_latency_high",
        "loss_spike",
        "isolation_violations",
        "hook_budget",
        "policy_risk_critical",
        "bp_quarantine",
        "device_pressure_high",
        "cpu_pressure_high",
        "inference_failed",
        "graph_too_large",
        "overloaded",
        "model_missing",
        "non_finite_output",
        "breaker_open",
        "emergency_conservative",
    }
)


def priority_of(events: Iterable[tuple[str, TelemetryLevel]]) -> MessagePriority:
    """Return the priority of a packet with ``events``, given as machine code and level."""
    priority = MessagePriority.NORMAL
    for name, level in events:
        if level is TelemetryLevel.CRITICAL:
            return MessagePriority.CRITICAL
        if level >= TelemetryLevel.WARNING and name in HIGH_EVENTS:
            priority = MessagePriority.HIGH
    return priority
