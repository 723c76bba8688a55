"""The state of one training run: small, serialisable, saved in the same commit as each decision (design §5).

Everything that must survive a restart or a takeover is here and nothing else: topology and node features are
derived. Times are Unix nanoseconds so that they mean the same on the worker that takes over.
"""

from __future__ import annotations

import msgspec

from schemas.enums import CircuitBreakerState, EmergencyLevel
from schemas.kasmina import SeedState


class EwmaNorm(msgspec.Struct):
    """Moving mean and variance of one metric (requirements ``000`` §3: α = 0.1, ε = 1e-6)."""

    mean: float
    var: float
    count: int = 0


class StepRecord(msgspec.Struct, frozen=True):
    """One line of the step history. None = upstream did not send it."""

    step: int
    epoch: int | None = None
    loss: float | None = None
    gradient_norm: float | None = None
    samples_per_s: float | None = None
    hook_latency_ms: float | None = None
    decision_latency_ms: float | None = None


class BreakerRecord(msgspec.Struct):
    """A circuit breaker's state. ``opened_at`` is Unix ns; ``operator_hold`` keeps it where an operator put it."""

    state: CircuitBreakerState = CircuitBreakerState.CLOSED
    failures: int = 0
    successes: int = 0
    opened_at: int = 0
    operator_hold: bool = False


class ConservativeMode(msgspec.Struct):
    """Safe mode with hysteresis: left only after enough clean steps *and* a cool-down (design §9)."""

    active: bool = False
    reason: str = ""
    entered_step: int = 0
    entered_at: int = 0
    clean_steps: int = 0
    operator_override: bool | None = None


class PauseQuota(msgspec.Struct):
    """Targeted pauses spent in the current epoch."""

    epoch: int = 0
    used: int = 0


class ObservationWindow(msgspec.Struct):
    """What happens to the run after a command, until ``target_epochs`` true epochs have passed (domain.md §7)."""

    command_id: str
    seed_id: str
    blueprint_id: str
    policy_version: str
    reason: str
    start_epoch: int
    target_epochs: int
    issued_at: int
    steps: int = 0
    loss_delta_sum: float = 0.0
    loss_delta_min: float = 0.0
    loss_delta_max: float = 0.0
    hook_latency_sum: float = 0.0
    hook_latency_count: int = 0
    had_critical: bool = False


class RunState(msgspec.Struct):
    """Rolling state of one training run.

    Attributes:
        last_step: newest decided or superseded step; -1 before the first.
        recent_ids: newest event ids, for duplicate detection; bounded.
        history: newest steps, oldest first; bounded.
        norms: moving statistics by metric.
        seeds: newest export by seed id, in export order.
        counters: lifetime counts by name (decisions, superseded, duplicate, stale, gap, …).
        directives: when the operator's word that holds was issued, by subject.
        missing_reported: whether the features that upstream does not send were logged.
    """

    run_id: str
    last_step: int = -1
    last_packet_id: str = ""
    last_epoch: int | None = None
    last_loss: float | None = None
    last_validation_loss: float | None = None
    recent_ids: list[str] = []
    history: list[StepRecord] = []
    norms: dict[str, EwmaNorm] = {}
    seeds: dict[str, SeedState] = {}
    seeds_timestamp_ns: int = 0
    blueprint_id: str | None = None
    blueprint_version: str | None = None
    emergency_level: EmergencyLevel = EmergencyLevel.UNSPECIFIED
    conservative: ConservativeMode = msgspec.field(default_factory=ConservativeMode)
    breakers: dict[str, BreakerRecord] = {}
    pauses: PauseQuota = msgspec.field(default_factory=PauseQuota)
    windows: dict[str, ObservationWindow] = {}
    counters: dict[str, int] = {}
    missing_reported: bool = False
    directives: dict[str, int] = {}

    def count(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to the lifetime counter ``name``."""
        self.counters[name] = self.counters.get(name, 0) + amount
