"""Network answers, seeds and kernels to decide on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.enums import BlueprintKind, BlueprintTier, SeedLifecycleStage
from schemas.kasmina import SeedState
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint, BlueprintDescriptor
from tamiyo_stream.policy.decision import Stamp, StepFacts

STAMP = Stamp("c-1", 1_000, 60_000, 0.1, "tamiyo_gnn_v1", 12.5)


@dataclass
class Heads:
    """A network answer for S seeds, K kernels, L layers; every head can be given."""

    policy_logits: np.ndarray
    policy_params: np.ndarray
    risk_logits: np.ndarray
    blending_method_logits: np.ndarray
    seed_scores: np.ndarray
    seed_schedule: np.ndarray
    blueprint_scores: np.ndarray
    layer_attention: np.ndarray
    seed_attention: np.ndarray
    value_estimate: float = 0.25
    policy_version: str = "tamiyo_gnn_v1"
    policy_digest: str = "d" * 64


def heads(rng: np.random.Generator | None = None, *, seeds: int = 2, kernels: int = 3, **given) -> Heads:
    generator = rng or np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    values = {
        "policy_logits": normal(32),
        "policy_params": np.tanh(normal(32, 4)),
        "risk_logits": normal(5),
        "blending_method_logits": normal(4),
        "seed_scores": normal(seeds),
        "seed_schedule": np.tanh(normal(seeds, 2)),
        "blueprint_scores": normal(kernels),
        "layer_attention": np.array([0.5, 0.2, 0.3, 0.0], dtype=np.float32),
        "seed_attention": np.zeros(seeds, dtype=np.float32),
    }
    return Heads(**{**values, **given})


def preferring(*slots: int, **given) -> Heads:
    """An answer that prefers ``slots`` in this order."""
    logits = np.zeros(32, dtype=np.float32)
    for rank, slot in enumerate(slots):
        logits[slot] = 100.0 - rank
    return heads(policy_logits=logits, **given)


def seed(name: str, stage: SeedLifecycleStage = SeedLifecycleStage.DORMANT, **fields) -> SeedState:
    return SeedState(seed_id=name, stage=stage, **fields)


def kernel(name: str, **descriptor) -> Blueprint:
    given = {"tier": BlueprintTier.SAFE, "risk": 0.1, **descriptor}
    return Blueprint(
        blueprint_id=name,
        blueprint_version="1",
        kind=BlueprintKind.KERNEL,
        issued_at=1,
        descriptor=BlueprintDescriptor(**given),
    )


def facts(
    *,
    seeds=(),
    kernels=(),
    sheets=None,
    training_loss=1.0,
    optimizers=("adamw",),
    superseded=(),
    packet=None,
    **given,
) -> StepFacts:
    """Facts of one step; ``packet`` holds further fields of the state packet, ``given`` of the facts."""
    values = {
        "coverage_average": 0.5,
        "coverage_keys": {"layer.weight_norm": 0.5},
        "coverage_types": {"node.layer": 0.5},
        **given,
    }
    state = {"run_id": "r", "packet_id": "p", "global_step": 9, "timestamp_ns": 1, "training_loss": training_loss}
    return StepFacts(
        packet=SystemStatePacket(**{**state, **(packet or {})}),
        seeds=seeds,
        kernels=kernels,
        layer_ids=("l0", "l1", "l2", "l3"),
        sheets=sheets or {},
        optimizer_families=optimizers,
        superseded_packet_ids=superseded,
        **values,
    )


def graft_facts(**given) -> StepFacts:
    """A run in which a graft is legal."""
    return facts(**{"seeds": [seed("a")], "kernels": [kernel("k")], **given})


def grafting(**given) -> Heads:
    """An answer that prefers a graft, its risk low."""
    calm = np.array([9.0, 0.0, 0.0, 0.0, 0.0], dtype=np.float32)
    return preferring(0, **{"seeds": 1, "kernels": 1, "risk_logits": calm, **given})
