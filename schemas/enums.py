"""Leyline enumerations with their final numbers (``domain.md`` §2.2, schema of 2025-09-25).

Numbers travel on the wire; names are used in annotations and telemetry. Leyline's ``BusMessageType`` and
``DeliveryGuarantee`` have no counterpart: an entry's ``type`` field is the message's name, and no message chooses
its delivery.
"""

from __future__ import annotations

from enum import IntEnum


class SeedLifecycleStage(IntEnum):
    """The eleven stages of a seed; :data:`LEGAL_TRANSITIONS` says which moves exist."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    SHADOWING = 5
    PROBATIONARY = 6
    FOSSILIZED = 7
    CULLED = 8
    EMBARGOED = 9
    RESETTING = 10
    TERMINATED = 11


_STAGE = SeedLifecycleStage
LEGAL_TRANSITIONS: dict[SeedLifecycleStage, frozenset[SeedLifecycleStage]] = {
    _STAGE.UNKNOWN: frozenset({_STAGE.DORMANT}),
    _STAGE.DORMANT: frozenset({_STAGE.GERMINATED, _STAGE.TERMINATED}),
    _STAGE.GERMINATED: frozenset({_STAGE.TRAINING, _STAGE.CULLED}),
    _STAGE.TRAINING: frozenset({_STAGE.BLENDING, _STAGE.CULLED}),
    _STAGE.BLENDING: frozenset({_STAGE.SHADOWING, _STAGE.CULLED}),
    _STAGE.SHADOWING: frozenset({_STAGE.PROBATIONARY, _STAGE.CULLED}),
    _STAGE.PROBATIONARY: frozenset({_STAGE.FOSSILIZED, _STAGE.CULLED}),
    _STAGE.FOSSILIZED: frozenset({_STAGE.TERMINATED}),
    _STAGE.CULLED: frozenset({_STAGE.EMBARGOED}),
    _STAGE.EMBARGOED: frozenset({_STAGE.RESETTING}),
    _STAGE.RESETTING: frozenset({_STAGE.DORMANT}),
    _STAGE.TERMINATED: frozenset(),
}


class SeedLifecycleGate(IntEnum):
    """Checks a seed passes between stages."""

    UNKNOWN = 0
    G0_SANITY = 1
    G1_GRADIENT_HEALTH = 2
    G2_STABILITY = 3
    G3_INTERFACE = 4
    G4_SYSTEM_IMPACT = 5
    G5_RESET = 6


class HealthStatus(IntEnum):
    """Health of a telemetry source."""

    UNKNOWN = 0
    HEALTHY = 1
    DEGRADED = 2
    UNHEALTHY = 3
    CRITICAL = 4


class CircuitBreakerState(IntEnum):
    """State of a circuit breaker."""

    UNKNOWN = 0
    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


class CommandType(IntEnum):
    """What a command asks for; decides which payload it carries."""

    UNKNOWN = 0
    SEED = 1
    ROLLBACK = 2
    OPTIMIZER = 3
    CIRCUIT_BREAKER = 4
    PAUSE = 5
    EMERGENCY = 6
    STRUCTURAL_PRUNING = 7


class SeedOperation(IntEnum):
    """Operation of a SEED command. Kasmina acts on GERMINATE, CULL and CANCEL (``domain.md`` §2.6)."""

    UNKNOWN = 0
    GERMINATE = 1
    START_TRAINING = 2
    START_GRAFTING = 3
    STABILIZE = 4
    EVALUATE = 5
    FINE_TUNE = 6
    FOSSILIZE = 7
    CULL = 8
    CANCEL = 9


class MessagePriority(IntEnum):
    """Priority of a telemetry packet: HIGH and CRITICAL also go to the emergency stream."""

    UNSPECIFIED = 0
    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


class TelemetryLevel(IntEnum):
    """Severity of an event or packet."""

    UNSPECIFIED = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4


class EmergencyLevel(IntEnum):
    """Tolaria's levels L1 to L4: CONSERVATIVE asks for conservative mode, HALT stops SEED commands."""

    UNSPECIFIED = 0
    NOTICE = 1
    ELEVATED = 2
    CONSERVATIVE = 3
    HALT = 4


class Override(IntEnum):
    """An operator's word on something that has rules of its own (ours; design §9)."""

    AUTO = 0
    ON = 1
    OFF = 2


class FieldReportOutcome(IntEnum):
    """What became of a command."""

    UNSPECIFIED = 0
    SUCCESS = 1
    NEUTRAL = 2
    REGRESSION = 3
    ABORTED = 4


class BlueprintTier(IntEnum):
    """Karn's trust in a blueprint."""

    UNSPECIFIED = 0
    SAFE = 1
    EXPERIMENTAL = 2
    HIGH_RISK = 3


class HazardBand(IntEnum):
    """Band of the safety score: from 0.30 MEDIUM, from 0.60 HIGH, from 0.85 CRITICAL (``domain.md`` §2.12)."""

    UNSPECIFIED = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class HandlingClass(IntEnum):
    """How a blueprint must be handled."""

    UNSPECIFIED = 0
    STANDARD = 1
    RESTRICTED = 2
    QUARANTINE = 3


class ResourceProfile(IntEnum):
    """What a blueprint mostly uses."""

    UNSPECIFIED = 0
    CPU = 1
    GPU = 2
    MEMORY_HEAVY = 3
    IO_HEAVY = 4
    MIXED = 5


class Provenance(IntEnum):
    """Who issued a safety sheet."""

    UNSPECIFIED = 0
    URABRASK = 1
    CURATED = 2
    HEURISTIC = 3
    EXTERNAL = 4


class GradientInstability(IntEnum):
    """Class of a layer's recent gradient behaviour (ours; requirements ``002`` §2, layer nodes)."""

    UNKNOWN = 0
    STABLE = 1
    VANISHING = 2
    EXPLODING = 3
    OSCILLATING = 4


class CompileStatus(IntEnum):
    """Whether a blueprint runs compiled (ours; requirements ``002`` §2, parameter nodes).

    EAGER: nobody asked for it to be compiled; EAGER_FALLBACK: it was tried, and given up.
    """

    UNKNOWN = 0
    COMPILED = 1
    EAGER_FALLBACK = 2
    FAILED = 3
    EAGER = 4


class BlueprintKind(IntEnum):
    """What a blueprint is to Tamiyo (ours): the model being trained, or a kernel to graft into it."""

    UNSPECIFIED = 0
    HOST = 1
    KERNEL = 2


#: Alpha-schedule families; the position is the wire's ``blending_method_index`` (requirements ``000``).
BLENDING_METHODS: tuple[str, ...] = ("linear", "cosine", "warmup_hold", "sigmoid")
DEFAULT_BLENDING_METHOD = "linear"
#: Optimizer families in the registry's preseed order (``domain.md`` §8.1).
OPTIMIZER_FAMILIES: tuple[str, ...] = ("sgd", "adam", "adamw", "rmsprop", "adagrad")
