"""What a decision is made from: the step's facts, the run's safety state, and what makes the command unique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.enums import CircuitBreakerState, EmergencyLevel
from schemas.kasmina import SeedState
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.policy.blending import BlendModeProfile
from tamiyo_stream.policy.breakers import OWN_BREAKERS, BreakerPolicy
from tamiyo_stream.policy.conservative import ConservativeRules
from tamiyo_stream.policy.thresholds import RiskThresholds
from tamiyo_stream.policy.windows import WindowRules
from tamiyo_stream.runs.state import BreakerRecord, ConservativeMode, PauseQuota, RunState


@dataclass(frozen=True, slots=True)
class IntakeFacts:
    """What happened to the run's state packets since its last decision; counts of packets or steps.

    ``state_age_ms`` is how old the decided state was when it was claimed; None where nobody can say (a replay).
    """

    state_age_ms: float | None = None
    gap_steps: int = 0
    stale_packets: int = 0
    duplicate_packets: int = 0
    metadata_timed_out: bool = False
    metadata_budget_ms: float | None = None


@dataclass(frozen=True, slots=True)
class CompileFacts:
    """Whether the network runs compiled. ``reason`` is empty where it does, or where nobody asked for it.

    ``report_due``: this step is the first of the model version, the one that reports the fallback.
    """

    reason: str = ""
    device: str = ""
    report_due: bool = False


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a decision is about. ``seeds``, ``kernels`` and ``layer_ids`` are in the graph's order.

    ``coverage_*`` are ratios 0..1 of what upstream sent (:class:`tamiyo_stream.graph.structures.Coverage`).
    ``loss_delta`` is against the same run's last step. ``telemetry`` holds the newest values that Tolaria and
    Kasmina reported beside the packet, by the names of domain.md §2.4; the packet's own values count first.
    ``safety_failures``: blueprint id -> why Urabrask could not evaluate it. ``host_blending_methods``: what the
    host allows to seeds that export no list of their own.
    """

    packet: SystemStatePacket
    seeds: Sequence[SeedState]
    kernels: Sequence[Blueprint]
    layer_ids: Sequence[str]
    sheets: Mapping[str, BlueprintSafetySheet]
    optimizer_families: Sequence[str]
    coverage_average: float
    coverage_keys: Mapping[str, float] = field(repr=False)
    coverage_types: Mapping[str, float] = field(repr=False)
    superseded_packet_ids: Sequence[str] = ()
    loss_delta: float | None = None
    telemetry: Mapping[str, float] = field(default_factory=dict, repr=False)
    safety_failures: Mapping[str, str] = field(default_factory=dict, repr=False)
    host_blending_methods: Sequence[str] | None = None
    intake: IntakeFacts = IntakeFacts()
    compiled: CompileFacts = CompileFacts()
    feature_manifest: str = ""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes a command unique and fresh; given, so that deciding stays a pure function.

    ``issued_at`` is Unix ns; ``elapsed_ms`` the time since the state packet was claimed, ``budget_ms`` the most it
    may be (None = no deadline).
    """

    command_id: str
    issued_at: int
    execution_deadline_ms: int
    lr_change_max: float
    policy_version: str
    elapsed_ms: float
    budget_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """The run's safety state before the decision, as :class:`~tamiyo_stream.runs.state.RunState` keeps it.

    ``kernel_breaker`` is Kasmina's own breaker as it reports it, UNKNOWN where it does not.
    """

    conservative: ConservativeMode = field(default_factory=ConservativeMode)
    pauses: PauseQuota = field(default_factory=PauseQuota)
    breakers: Mapping[str, BreakerRecord] = field(default_factory=dict)
    emergency_level: EmergencyLevel = EmergencyLevel.UNSPECIFIED
    kernel_breaker: CircuitBreakerState = CircuitBreakerState.UNKNOWN
    kernel_breaker_held: bool = False
    last_epoch: int | None = None

    @classmethod
    def of(cls, run: RunState) -> Guard:
        """Return the safety state of ``run``; its breaker ``kasmina`` mirrors what Kasmina reports."""
        kernel = run.breakers.get(KERNEL_BREAKER)
        return cls(
            conservative=run.conservative,
            pauses=run.pauses,
            breakers={name: record for name, record in run.breakers.items() if name in OWN_BREAKERS},
            emergency_level=run.emergency_level,
            kernel_breaker=kernel.state if kernel is not None else CircuitBreakerState.UNKNOWN,
            kernel_breaker_held=kernel is not None and kernel.operator_hold,
            last_epoch=run.last_epoch,
        )

    @property
    def breakers_closed(self) -> bool:
        """Whether every breaker of Tamiyo's own is CLOSED."""
        return all(record.state is CircuitBreakerState.CLOSED for record in self.breakers.values())


#: Name of Kasmina's kernel breaker in ``RunState.breakers``.
KERNEL_BREAKER = "kasmina"


@dataclass(frozen=True, slots=True)
class PolicyProfile:
    """What an operator may set of the decision core. ``pause_quota`` counts targeted pauses per epoch and run.

    ``breaker`` and ``windows`` are for the calls beside the decision: around inference, and after it.
    """

    thresholds: RiskThresholds = field(default_factory=RiskThresholds)
    conservative: ConservativeRules = field(default_factory=ConservativeRules)
    blend_mode: BlendModeProfile = field(default_factory=BlendModeProfile)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    windows: WindowRules = field(default_factory=WindowRules)
    pause_quota: int = 10
