"""Sources: what the ``source`` paths of the feature and relation tables mean.

A path starts at a *subject*: ``state`` (the packet), ``blueprint``, ``sheet`` (the host's safety sheet), ``run``
(the rolling cache), ``seed``, ``kernel`` (a candidate, or the one attached to a seed) and ``kernel_sheet``. None
anywhere on the way means missing. Each path is split once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from statistics import fmean
from typing import Any

from schemas.kasmina import SeedState
from schemas.record import Record
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint
from tamiyo_stream.graph.blocks import Field
from tamiyo_stream.graph.features import Kind
from tamiyo_stream.graph.registries import CAPACITIES, Registries
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables

Subjects = dict[str, Any]
Path = tuple[str, ...]

#: Steps of history behind the rolling means of the context node.
ROLLING_STEPS = 32


@cache
def path_of(source: str) -> Path:
    """Return the names along a source path."""
    return tuple(source.split("."))


def walk(path: Path, subjects: Subjects) -> Any:
    """Return what lies at ``path``, or None."""
    value: Any = subjects
    for name in path:
        value = value.get(name) if type(value) is dict else getattr(value, name, None)
        if value is None:
            return None
    return value


def read(sources: tuple[str, ...], subjects: Subjects) -> Any:
    """Return the value at the first of ``sources`` that leads anywhere, or None."""
    for source in sources:
        value = walk(path_of(source), subjects)
        if value is not None:
            return value
    return None


def number(value: Any, entry: Field, registries: Registries) -> float:
    """Return a scalar as a float, NaN where missing: flags by truth, categories by index."""
    if value is None:
        return math.nan
    if entry.kind is Kind.CATEGORY:
        return float(registries.index(entry.vocabulary, value) if isinstance(value, str) else int(value))
    return float(bool(value)) if entry.kind is Kind.FLAG else float(value)


def state_subject(
    packet: SystemStatePacket, blueprint: Blueprint | None, counts: Mapping[str, int | None]
) -> tuple[dict[str, Any], list[str]]:
    """Return the ``state`` subject without column groups that do not fit the blueprint, and what was left out.

    Args:
        packet: the step.
        blueprint: the host model, None where it is not known.
        counts: elements that each column group must have; None: the blueprint has no such section.
    """
    state: dict[str, Any] = {
        "training_loss": packet.training_loss,
        "training_metrics": packet.training_metrics,
        "hardware_context": packet.hardware_context,
    }
    problems = []
    for group, expected in counts.items():
        columns = getattr(packet, group)
        length = None if columns is None else _length(columns)
        if length is None:
            continue
        misfit = _misfit(group, length, expected, packet, blueprint)
        if misfit is None:
            state[group] = columns
        else:
            problems.append(f"state.{group}: {misfit}; its columns were left out")
    return state, problems


def _length(columns: Record) -> int | None:
    for name in columns.__struct_fields__:
        column = getattr(columns, name)
        if column is not None:
            return len(column)
    return None


def _misfit(
    group: str, length: int, expected: int | None, packet: SystemStatePacket, blueprint: Blueprint | None
) -> str | None:
    """Say why a column group of ``length`` elements cannot be placed, None where it can."""
    if blueprint is None:
        return "the blueprint that its elements belong to is not known"
    version = blueprint.blueprint_version
    if packet.blueprint_version not in (None, version):
        return f"it belongs to blueprint version {packet.blueprint_version!r}, known is {version!r}"
    if expected is None:
        return f"blueprint {blueprint.blueprint_id!r} version {version!r} lists no {group}"
    if length != expected:
        return f"{length} elements where the blueprint has {expected}"
    return None


def run_subject(run: RunState, deadline_ms: float) -> dict[str, Any]:
    """Return the ``run`` subject: what the context node and its edges say about the run so far.

    ``sla_breaches`` is the run's counter of that name. No message reports ``weatherlight_health``: it is missing.
    """
    recent = run.history[-ROLLING_STEPS:]
    # The newest step is being decided now; a superseded one never was.
    latencies = (record.decision_latency_ms for record in reversed(recent))
    latency = next((known for known in latencies if known is not None), None)
    return {
        "loss_mean": _mean_of([record.loss for record in recent]),
        "throughput_mean": _mean_of([record.samples_per_s for record in recent]),
        "conservative": float(run.conservative.active),
        "sla_breaches": float(run.counters.get("sla_breaches", 0)),
        "latency_budget_utilisation": None if latency is None else latency / deadline_ms,
    }


def kernel_subjects(kernel: Blueprint, tables: Tables, registries: Registries) -> Subjects:
    """Return the subjects of a ``blueprint`` node."""
    derived = {
        "candidate_score": _candidate_score(kernel, tables.risk_of(kernel.blueprint_id)),
        "registry_share": registries.index("blueprint", kernel.blueprint_id) / CAPACITIES["blueprint"],
    }
    return {"kernel": kernel, "kernel_sheet": tables.sheets.get(kernel.blueprint_id), "run": derived}


def seed_subjects(seed: SeedState, tables: Tables) -> Subjects:
    """Return the subjects of a ``seed`` node; ``kernel`` is the one attached to it."""
    attached = seed.blueprint_id or ""
    return {
        "seed": seed,
        "kernel": tables.kernels.get(attached),
        "kernel_sheet": tables.sheets.get(attached),
    }


def _candidate_score(kernel: Blueprint, risk: float | None) -> float | None:
    """Score of ``domain.md`` §2.13: safe, mature, adjustable kernels first. None without a risk."""
    if risk is None:
        return None
    descriptor = kernel.descriptor
    stage = (descriptor.stage or 0) if descriptor is not None else 0
    adjustable = len(descriptor.allowed_parameters) if descriptor is not None else 0
    return max(0.0, (1.0 - risk) + 0.05 * stage + 0.02 * adjustable)


def _mean_of(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
