"""The seeds as Tamiyo is told of them: every field of ``SeedState`` that has a true value (``domain.md`` §2.5).

A field without one is absent: gradient norm, learning rate, age and kernel of a seed that has no kernel. What a
dormant seed's fields mean all the same: ``alpha_schedule`` is what a germination would use that asks for nothing,
``risk_score`` is 0 (without a kernel it cannot harm), ``policy_version`` is empty (none placed it), and
``success_rate`` follows Laplace's rule, one half before the first graft.
"""

from __future__ import annotations

import math

from schemas.kasmina import AlphaSchedule, MonitoredLayer, SeedState
from tamiyo_stream.upstream.kasmina.activity import ActivityMeter
from tamiyo_stream.upstream.kasmina.blending import DEFAULT_TEMPERATURE, BlendingSchedule
from tamiyo_stream.upstream.kasmina.lifecycle import BLENDED, risk_of
from tamiyo_stream.upstream.kasmina.seed import Graft, Seed
from tamiyo_stream.upstream.kasmina.seedbed import Seedbed
from tamiyo_stream.upstream.tolaria.optimizer import family_of, group_ids, learning_rate_of


def seed_states(bed: Seedbed, activity: ActivityMeter, activity_every: int) -> list[SeedState]:
    """Return the state of every seed in ``bed``; ``activity_every`` steps lie between two looks at the layers."""
    return [_state_of(seed, bed, activity, activity_every) for seed in bed.seeds]


def outline_of(seed: Seed) -> tuple[object, ...]:
    """Return what of ``seed`` must be exported at once when it differs."""
    return (seed.stage, seed.alpha, seed.paused, seed.fossilized, seed.failed)


def _state_of(seed: Seed, bed: Seedbed, activity: ActivityMeter, activity_every: int) -> SeedState:
    placed, site, graft = seed.placed, seed.placed.site, seed.graft
    watched = [layer.layer_id for layer in placed.monitored]
    position = bed.groups.position_of(graft.kernel) if graft is not None else None
    own = [] if position is None else [group_ids(bed.groups.optimizer)[position]]
    group = None if position is None else bed.groups.optimizer.param_groups[position]
    blends = seed.stage in BLENDED and not seed.paused
    return SeedState(
        seed_id=seed.seed_id,
        stage=seed.stage,
        gradient_norm=_finite(graft.gradient_norm) if graft is not None else None,
        learning_rate=_finite(learning_rate_of(group)) if group is not None else None,
        layer_depth=placed.depth,
        metrics=_metrics(seed, bed, blends),
        age_epochs=_age(graft, bed.epoch),
        risk_score=risk_of(seed.facts(), bed.limits) if graft is not None else 0.0,
        blueprint_id=graft.blueprint_id if graft is not None else None,
        monitoring_scope=placed.scope,
        activity_level=activity.of(watched or [site.layer_id]),
        success_rate=seed.success_rate,
        risk_tolerance=site.risk_tolerance,
        specialization=site.specialization,
        quarantine_only=site.quarantine_only,
        policy_version=graft.policy_version if graft is not None else "",
        alpha=seed.alpha,
        alpha_schedule=_schedule(seed, bed),
        blend_allowed=blends,
        allowed_blending_methods=list(site.allowed_blending_methods),
        optimizer_families=[family_of(bed.groups.optimizer)],
        allowed_parameters=[*placed.parameters, *own],
        isolation_exemptions=[],
        monitored_layers=[
            MonitoredLayer(
                layer_id=layer_id,
                monitoring_frequency=1.0 / activity_every,
                # A relative rise of the loss beyond this makes the host cull the seed (gate G4).
                adaptation_trigger_threshold=bed.limits.regression_max * site.risk_tolerance,
            )
            for layer_id in watched
        ],
    )


def _schedule(seed: Seed, bed: Seedbed) -> AlphaSchedule | None:
    methods = seed.placed.site.allowed_blending_methods
    if seed.graft is not None:
        schedule = seed.graft.schedule
    elif methods:
        schedule = BlendingSchedule(methods[0], total_steps=bed.limits.blending_steps)
    else:
        return None
    return AlphaSchedule(
        method=schedule.method,
        start=schedule.start,
        end=schedule.end,
        total_steps=schedule.total_steps,
        temperature=schedule.temperature,
    )


def _metrics(seed: Seed, bed: Seedbed, blends: bool) -> dict[str, float]:
    graft = seed.graft
    metrics = {
        "alpha_steps": float(graft.blended_steps) if graft is not None else 0.0,
        "alpha_total_steps": float(bed.limits.blending_steps),
        "alpha_temperature": graft.schedule.temperature if graft is not None else DEFAULT_TEMPERATURE,
        "blend_allowed": float(blends),
        "paused": float(seed.paused),
    }
    ratio = graft.readings.ratio_mean if graft is not None else None
    if _finite(ratio) is not None:
        metrics["seed_to_host_norm"] = float(ratio or 0.0)
    return metrics


def _age(graft: Graft | None, epoch: int | None) -> int | None:
    if graft is None or graft.epoch is None or epoch is None:
        return None
    return max(epoch - graft.epoch, 0)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
