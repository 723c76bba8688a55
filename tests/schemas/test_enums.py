"""Leyline's enumerations keep their final numbers (domain brief §2.2): they travel on the wire."""

from __future__ import annotations

from enum import IntEnum

import pytest

from schemas import enums
from schemas.enums import BLENDING_METHODS, LEGAL_TRANSITIONS, OPTIMIZER_FAMILIES, SeedLifecycleStage

LEYLINE: dict[str, str] = {
    "SeedLifecycleStage": (
        "UNKNOWN 0, DORMANT 1, GERMINATED 2, TRAINING 3, BLENDING 4, SHADOWING 5, PROBATIONARY 6, FOSSILIZED 7, "
        "CULLED 8, EMBARGOED 9, RESETTING 10, TERMINATED 11"
    ),
    "SeedLifecycleGate": (
        "UNKNOWN 0, G0_SANITY 1, G1_GRADIENT_HEALTH 2, G2_STABILITY 3, G3_INTERFACE 4, G4_SYSTEM_IMPACT 5, "
        "G5_RESET 6"
    ),
    "HealthStatus": "UNKNOWN 0, HEALTHY 1, DEGRADED 2, UNHEALTHY 3, CRITICAL 4",
    "CircuitBreakerState": "UNKNOWN 0, CLOSED 1, OPEN 2, HALF_OPEN 3",
    "CommandType": (
        "UNKNOWN 0, SEED 1, ROLLBACK 2, OPTIMIZER 3, CIRCUIT_BREAKER 4, PAUSE 5, EMERGENCY 6, STRUCTURAL_PRUNING 7"
    ),
    "SeedOperation": (
        "UNKNOWN 0, GERMINATE 1, START_TRAINING 2, START_GRAFTING 3, STABILIZE 4, EVALUATE 5, FINE_TUNE 6, "
        "FOSSILIZE 7, CULL 8, CANCEL 9"
    ),
    "MessagePriority": "UNSPECIFIED 0, LOW 1, NORMAL 2, HIGH 3, CRITICAL 4",
    "TelemetryLevel": "UNSPECIFIED 0, INFO 1, WARNING 2, ERROR 3, CRITICAL 4",
    "EmergencyLevel": "UNSPECIFIED 0, NOTICE 1, ELEVATED 2, CONSERVATIVE 3, HALT 4",
    "FieldReportOutcome": "UNSPECIFIED 0, SUCCESS 1, NEUTRAL 2, REGRESSION 3, ABORTED 4",
    "BlueprintTier": "UNSPECIFIED 0, SAFE 1, EXPERIMENTAL 2, HIGH_RISK 3",
    "HazardBand": "UNSPECIFIED 0, LOW 1, MEDIUM 2, HIGH 3, CRITICAL 4",
    "HandlingClass": "UNSPECIFIED 0, STANDARD 1, RESTRICTED 2, QUARANTINE 3",
    "ResourceProfile": "UNSPECIFIED 0, CPU 1, GPU 2, MEMORY_HEAVY 3, IO_HEAVY 4, MIXED 5",
    "Provenance": "UNSPECIFIED 0, URABRASK 1, CURATED 2, HEURISTIC 3, EXTERNAL 4",
}

#: Legal moves of a seed, by stage number (domain brief §2.2).
MOVES: dict[int, set[int]] = {
    0: {1},
    1: {2, 11},
    2: {3, 8},
    3: {4, 8},
    4: {5, 8},
    5: {6, 8},
    6: {7, 8},
    7: {11},
    8: {9},
    9: {10},
    10: {1},
    11: set(),
}


@pytest.mark.parametrize("name", LEYLINE)
def test_an_enumeration_has_leylines_names_and_numbers(name: str):
    members: type[IntEnum] = getattr(enums, name)
    assert ", ".join(f"{member.name} {member.value}" for member in members) == LEYLINE[name]


def test_seeds_move_between_stages_as_leyline_says():
    assert {stage.value: set(map(int, moves)) for stage, moves in LEGAL_TRANSITIONS.items()} == MOVES


def test_every_stage_but_terminated_can_reach_terminated():
    reached = {SeedLifecycleStage.TERMINATED}
    for _ in SeedLifecycleStage:
        reached |= {stage for stage, moves in LEGAL_TRANSITIONS.items() if moves & reached}
    assert reached == set(SeedLifecycleStage)


def test_a_blending_methods_position_is_its_index_on_the_wire():
    assert BLENDING_METHODS == ("linear", "cosine", "warmup_hold", "sigmoid")


def test_optimizer_families_stand_in_the_registrys_order():
    assert OPTIMIZER_FAMILIES == ("sgd", "adam", "adamw", "rmsprop", "adagrad")
