"""Random runs, good and bad: whatever upstream, the network and the safety state could be in."""

from __future__ import annotations

import math

import numpy as np

from schemas.enums import (
    BLENDING_METHODS,
    BlueprintTier,
    CircuitBreakerState,
    CompileStatus,
    EmergencyLevel,
    HandlingClass,
    HazardBand,
    SeedLifecycleStage,
)
from schemas.kasmina import SeedState
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint, BlueprintDescriptor, BlueprintParameterBounds, CompileReport
from tamiyo_stream.policy.blending import BlendMode, BlendModeProfile
from tamiyo_stream.policy.facts import CompileFacts, Guard, IntakeFacts, PolicyProfile, Stamp, StepFacts
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.policy.signals import METRIC_SIGNALS
from tamiyo_stream.runs.state import BreakerRecord, ConservativeMode, PauseQuota
from tests.policy.samples import Heads, heads, kernel

ODD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, -1e308)


class Chance:
    """Draws of one random state. Most are ``calm``: nothing pauses them, so that actions are really chosen."""

    def __init__(self, entropy: int) -> None:
        self.rng = np.random.default_rng(entropy)
        self.calm = self.yes(0.6)

    def yes(self, share: float = 0.5) -> bool:
        return bool(self.rng.random() < share)

    def one(self, options):
        options = list(options)
        return options[int(self.rng.integers(len(options)))]

    def some(self, options, share: float = 0.5) -> list:
        return [option for option in options if self.yes(share)]

    def number(self, scale: float = 1.0) -> float:
        return self.one(ODD) if self.yes(0.1) else float(self.rng.normal() * scale)

    def odd(self, share: float) -> bool:
        """What does not happen in a calm state."""
        return not self.calm and self.yes(share)

    def maybe(self, draw, share: float = 0.5):
        return draw() if self.yes(share) else None


def random_seed_state(chance: Chance, name: str) -> SeedState:
    return SeedState(
        seed_id=name,
        stage=SeedLifecycleStage.DORMANT if chance.yes(0.4) else chance.one(SeedLifecycleStage),
        quarantine_only=chance.maybe(lambda: chance.yes(0.2), 0.3),
        blend_allowed=chance.maybe(chance.yes),
        allowed_blending_methods=chance.maybe(lambda: chance.some([*BLENDING_METHODS, "unheard_of"])),
        allowed_parameters=chance.maybe(lambda: chance.some(["group0", "gain", "width"])),
        metrics={"paused": chance.one([0.0, 1.0, math.nan])} if chance.yes() else {},
    )


def random_kernel(chance: Chance, name: str) -> Blueprint:
    bounds = {}
    for parameter in chance.some(["gain", "width", "alpha", "a", "b", "c", "d"], 0.3):
        low, high = sorted([chance.number(10), chance.number(10)], key=lambda v: -math.inf if math.isnan(v) else v)
        if low <= high:
            bounds[parameter] = BlueprintParameterBounds(min_value=low, max_value=high)
    descriptor = BlueprintDescriptor(
        tier=BlueprintTier.SAFE if chance.yes(0.6) else chance.one(BlueprintTier),
        risk=chance.one([0.0, 0.1, 0.2, 0.49, 0.5, 0.8, None, math.nan]),
        stage=chance.maybe(lambda: 2),
        quarantine_only=chance.yes(0.1),
        approval_required=chance.yes(0.2),
        approved=chance.yes(0.4),
        allowed_parameters=bounds,
    )
    given = kernel(name)
    return Blueprint(
        blueprint_id=given.blueprint_id,
        blueprint_version="1",
        kind=given.kind,
        issued_at=1,
        descriptor=descriptor if chance.yes(0.95) else None,
        compiled=chance.maybe(lambda: CompileReport(status=chance.one(CompileStatus)), 0.3),
    )


def random_sheet(chance: Chance, name: str) -> BlueprintSafetySheet:
    return BlueprintSafetySheet(
        blueprint_id=name,
        issued_at=1,
        risk_score=chance.maybe(lambda: float(chance.rng.random())),
        hazard_band=chance.one(HazardBand),
        handling_class=chance.one(HandlingClass) if chance.yes(0.3) else HandlingClass.STANDARD,
    )


def random_heads(chance: Chance, seeds: int, kernels: int) -> Heads:
    answer = heads(chance.rng, seeds=seeds, kernels=kernels)
    answer.policy_logits *= 10
    answer.risk_logits *= 1 if chance.calm else 3
    if chance.yes(0.4):  # the actions beside the kernels, which are few among 32
        answer.policy_logits[int(chance.rng.integers(8))] += 100
    if chance.odd(0.1):
        chance.one([answer.policy_logits, answer.policy_params, answer.risk_logits]).flat[0] = np.nan
    if seeds:
        answer.seed_attention[0] = 1.0
    return answer


def random_facts(chance: Chance) -> StepFacts:
    seeds = [random_seed_state(chance, f"s{i}") for i in range(int(chance.rng.integers(0, 5)))]
    kernels = [random_kernel(chance, f"k{i}") for i in range(int(chance.one([0, 1, 3, 30])))]
    metrics = {name: chance.number(100) for name in METRIC_SIGNALS.values() if chance.odd(0.1)}
    return StepFacts(
        packet=SystemStatePacket(
            run_id="r",
            packet_id="p",
            global_step=9,
            timestamp_ns=1,
            blueprint_id=chance.maybe(lambda: "host"),
            current_epoch=chance.maybe(lambda: int(chance.rng.integers(0, 3))),
            training_loss=math.nan if chance.odd(0.1) else chance.one([None, 1.0]),
            training_metrics={k: v for k, v in metrics.items() if chance.yes(0.7)},
        ),
        seeds=seeds,
        kernels=kernels,
        layer_ids=("l0", "l1", "l2", "l3"),
        sheets={name: random_sheet(chance, name) for name in ("host", "k0", "k1") if chance.odd(0.5)},
        optimizer_families=chance.one([(), ("adamw",)]),
        coverage_average=0.9 if chance.calm else chance.one([0.0, 0.2, 0.9, 0.9]),
        coverage_keys={"layer.type": 1.0, "seed.alpha": 0.0},
        coverage_types={"node.layer": 1.0},
        superseded_packet_ids=chance.some(["p1", "p2"]),
        loss_delta=chance.number(0.05) if chance.odd(0.7) else 0.01,
        telemetry=metrics,
        safety_failures=dict.fromkeys(chance.some(["k0", "k1"], 0.1), "raised"),
        host_blending_methods=chance.maybe(lambda: chance.some(BLENDING_METHODS)),
        intake=IntakeFacts(state_age_ms=1e5 if chance.odd(0.1) else None, gap_steps=int(chance.yes(0.1))),
        compiled=CompileFacts(chance.one(["", "device_not_cuda"]), "cpu", report_due=chance.yes(0.1)),
        feature_manifest=chance.one(["", "m" * 64]),
    )


def random_guard(chance: Chance) -> Guard:
    return Guard(
        conservative=ConservativeMode(active=chance.odd(0.2), reason="loss_spike"),
        pauses=PauseQuota(epoch=int(chance.rng.integers(0, 3)), used=int(chance.rng.integers(0, 4))),
        breakers={"inference": BreakerRecord(state=chance.one(CircuitBreakerState))} if chance.odd(0.3) else {},
        emergency_level=chance.one(EmergencyLevel) if chance.odd(0.2) else EmergencyLevel.UNSPECIFIED,
        kernel_breaker=chance.one(CircuitBreakerState),
        kernel_breaker_held=chance.yes(0.2),
        last_epoch=chance.maybe(lambda: 1),
    )


def random_profile(chance: Chance) -> PolicyProfile:
    return PolicyProfile(
        blend_mode=BlendModeProfile(enabled=chance.yes(), mode=chance.one(BlendMode)),
        pause_quota=int(chance.rng.integers(0, 4)),
    )


def random_stamp(chance: Chance) -> Stamp:
    budget = 5.0 if chance.odd(0.1) else chance.one([None, 45.0])
    return Stamp("c-1", 1_000, 60_000, 0.1, "tamiyo_gnn_v1", 12.5, budget_ms=budget)


def random_failure(chance: Chance) -> str:
    return chance.one([*Failure, "unheard_of"]) if chance.odd(0.1) else ""
