"""Kasmina, the executor: the seeds of a run and what each of them may do (``domain.md`` §2.5)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import SeedLifecycleStage
from schemas.record import Count, Identifier, Message, Record, TimestampNs, doc


class AlphaSchedule(Record, frozen=True, kw_only=True):
    """How a seed's alpha rises: method and window (``domain.md`` §4.3)."""

    method: Annotated[str, doc("linear, cosine, warmup_hold or sigmoid")] = "linear"
    start: Annotated[float, doc("Start of the ramp within the window", "fraction_0_1")] = 0.0
    end: Annotated[float, doc("End of the ramp within the window", "fraction_0_1")] = 1.0
    total_steps: Annotated[Count | None, doc("Length of the blending window", "{step}")] = None
    temperature: Annotated[float | None, doc("Steepness of the sigmoid ramp", "{step}")] = None


class MonitoredLayer(Record, frozen=True, kw_only=True):
    """One layer that a seed watches. A layer the blueprint does not have is dropped and counted."""

    layer_id: Annotated[Identifier, doc("Layer of the host's blueprint")]
    monitoring_frequency: Annotated[float | None, doc("Share of steps it is sampled", "1")] = None
    adaptation_trigger_threshold: Annotated[float | None, doc("Signal level that triggers", "1")] = None


class SeedState(Record, frozen=True, kw_only=True):
    """One seed. Leyline's fields plus what requirements ``002`` §2 asks for; absent = not exported."""

    seed_id: Annotated[Identifier, doc("Unique within the run")]
    stage: SeedLifecycleStage = SeedLifecycleStage.UNKNOWN
    gradient_norm: Annotated[float | None, doc("L2 norm of the seed's gradients")] = None
    learning_rate: Annotated[float | None, doc("Learning rate of the seed's parameters")] = None
    layer_depth: Annotated[Count | None, doc("Depth of the host layer, 0-based")] = None
    metrics: Annotated[
        dict[str, float], doc("Kasmina's export keys, as alpha_steps (domain.md §2.5); unknown keys are kept")
    ] = {}
    age_epochs: Annotated[Count | None, doc("Epochs since germination", "{epoch}")] = None
    risk_score: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    blueprint_id: Annotated[str | None, doc("Kernel attached to the seed")] = None
    monitoring_scope: Annotated[float | None, doc("Share of the host's layers it monitors", "1")] = None
    activity_level: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    success_rate: Annotated[float | None, doc("Past grafts that fossilised; clamped to 0..1", "1")] = None
    risk_tolerance: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    specialization: Annotated[str | None, doc("What the seed is for, as attention")] = None
    quarantine_only: Annotated[bool | None, doc("May graft in quarantine only")] = None
    policy_version: Annotated[str | None, doc("Policy that placed the seed")] = None
    alpha: Annotated[float | None, doc("Blend of seed and host; clamped to 0..1", "1")] = None
    alpha_schedule: Annotated[AlphaSchedule | None, doc("How alpha rises")] = None
    blend_allowed: Annotated[bool | None, doc("Whether the seed may blend at all")] = None
    allowed_blending_methods: Annotated[
        list[str] | None, doc("Of linear, cosine, warmup_hold, sigmoid; empty list = none")
    ] = None
    optimizer_families: Annotated[list[str] | None, doc("Optimizers the seed trains under")] = None
    allowed_parameters: Annotated[
        list[str] | None, doc("Parameter ids the seed may touch; empty list = none, absent = not exported")
    ] = None
    isolation_exemptions: Annotated[list[str] | None, doc("Isolation checks the seed is excused from")] = None
    monitored_layers: Annotated[
        list[MonitoredLayer] | None, doc("Absent: the top layers by loss contribution are used")
    ] = None


class SeedExport(Message, frozen=True, kw_only=True):
    """All seeds of a run as of a step; replaces what was known of them (requirements ``002`` §1)."""

    run_id: Annotated[Identifier, doc("Training run: ordering and partition key")]
    timestamp_ns: TimestampNs
    seeds: Annotated[list[SeedState], doc("Every seed of the run")]
    global_step: Annotated[Count | None, doc("Step the export describes", "{step}")] = None
    source_subsystem: Annotated[str, doc("Publisher")] = "kasmina"
