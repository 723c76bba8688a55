"""Kasmina, the executor: the seeds of a run and what each of them may do (``domain.md`` §2.5)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import SeedLifecycleStage
from schemas.record import Identifier, Message, Record, TimestampNs, doc


class AlphaSchedule(Record, frozen=True, kw_only=True):
    """How a seed's alpha rises: method and window (``domain.md`` §4.3)."""

    method: Annotated[str, doc("linear, cosine, warmup_hold or sigmoid")] = "linear"
    start: Annotated[float, doc("Start of the ramp within the window", "fraction_0_1")] = 0.0
    end: Annotated[float, doc("End of the ramp within the window", "fraction_0_1")] = 1.0
    total_steps: Annotated[int | None, doc("Length of the blending window", "{step}")] = None
    temperature: float | None = None


class MonitoredLayer(Record, frozen=True, kw_only=True):
    """One layer that a seed watches. A layer the blueprint does not have is dropped and counted."""

    layer_id: Identifier
    monitoring_frequency: Annotated[float | None, doc("Share of steps it is sampled", "1")] = None
    adaptation_trigger_threshold: Annotated[float | None, doc("Signal level that triggers", "1")] = None


class SeedState(Record, frozen=True, kw_only=True):
    """One seed. Leyline's fields plus what requirements ``002`` §2 asks for; absent = not exported."""

    seed_id: Identifier
    stage: SeedLifecycleStage = SeedLifecycleStage.UNKNOWN
    gradient_norm: Annotated[float | None, doc("L2 norm of the seed's gradients")] = None
    learning_rate: float | None = None
    layer_depth: Annotated[int | None, doc("Depth of the host layer, 0-based")] = None
    metrics: Annotated[dict[str, float], doc("Kasmina's export keys (domain.md §2.5)")] = {}
    age_epochs: Annotated[int | None, doc("Epochs since germination", "{epoch}")] = None
    risk_score: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    blueprint_id: Annotated[str | None, doc("Kernel attached to the seed")] = None
    monitoring_scope: Annotated[float | None, doc("Share of the host's layers it monitors", "1")] = None
    activity_level: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    success_rate: Annotated[float | None, doc("Past grafts that fossilised; clamped to 0..1", "1")] = None
    risk_tolerance: Annotated[float | None, doc("Clamped to 0..1", "1")] = None
    specialization: str | None = None
    quarantine_only: bool | None = None
    policy_version: Annotated[str | None, doc("Policy that placed the seed")] = None
    alpha: Annotated[float | None, doc("Blend of seed and host; clamped to 0..1", "1")] = None
    alpha_schedule: AlphaSchedule | None = None
    blend_allowed: bool | None = None
    allowed_blending_methods: list[str] | None = None
    optimizer_families: Annotated[list[str] | None, doc("Optimizers the seed trains under")] = None
    allowed_parameters: Annotated[
        list[str] | None, doc("Parameter ids the seed may touch; empty list = none, absent = not exported")
    ] = None
    isolation_exemptions: list[str] | None = None
    monitored_layers: Annotated[
        list[MonitoredLayer] | None, doc("Absent: the top layers by loss contribution are used")
    ] = None


class SeedExport(Message, frozen=True, kw_only=True):
    """All seeds of a run as of a step; replaces what was known of them."""

    run_id: Identifier
    timestamp_ns: TimestampNs
    seeds: list[SeedState]
    global_step: Annotated[int | None, doc("Step the export describes")] = None
    source_subsystem: str = "kasmina"
