"""One decision: the command for a step, and why (design §9). A pure function of its arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.enums import CommandType, SeedOperation
from schemas.kasmina import SeedState
from schemas.tamiyo import AdaptationCommand, CommandOptimizerAdjustment, CommandSeedOperation
from schemas.tolaria import SystemStatePacket
from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint
from tamiyo_stream.policy.actions import Action
from tamiyo_stream.policy.heads import NetworkHeads
from tamiyo_stream.policy.legality import find_candidates
from tamiyo_stream.policy.selection import Selection, expected_severity, select

#: Layers named in a command's ``why``.
TOP_LAYERS = 3
SCHEDULE_UNITS = "fraction_0_1"


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a decision is about. ``seeds``, ``kernels`` and ``layer_ids`` are in the graph's order.

    ``coverage_*`` are ratios 0..1 of what upstream sent (:class:`tamiyo_stream.graph.structures.Coverage`).
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


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes a command unique and fresh; given, so that deciding stays a pure function.

    ``issued_at`` is Unix ns; ``elapsed_ms`` the time since the state packet was claimed.
    """

    command_id: str
    issued_at: int
    execution_deadline_ms: int
    lr_change_max: float
    policy_version: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A command not yet signed, and its figures; ``selection`` is None where the network had no say."""

    command: AdaptationCommand
    reason: str
    selection: Selection | None
    risk_score: float | None
    risk_index: int | None


def decide(facts: StepFacts, heads: NetworkHeads | None, stamp: Stamp, *, failure: str = "") -> Decision:
    """Return the decision on ``facts``.

    Without usable ``heads`` (``failure`` says why), or for a loss that is not a number, it is a PAUSE without
    target: it changes nothing in the run and says why.
    """
    reason = _override(facts.packet, heads, failure)
    if heads is None or reason:
        annotations = {**_common_annotations(facts, stamp), "policy_action": "none", "risk_reason": reason}
        return Decision(_command(facts, stamp, None, annotations), reason, None, None, None)
    candidates = find_candidates(
        facts.seeds, facts.kernels, facts.sheets, has_optimizer=bool(facts.optimizer_families)
    )
    selection = select(heads, candidates, facts.seeds)
    risk_score = expected_severity(heads.risk_logits)
    risk_index = int(np.argmax(heads.risk_logits))
    annotations = {
        **_common_annotations(facts, stamp),
        **_network_annotations(facts, heads, selection),
        "policy_risk_score": f"{risk_score:.6f}",
        "policy_risk_index": str(risk_index),
        "risk_reason": "policy",
    }
    return Decision(_command(facts, stamp, selection, annotations), "policy", selection, risk_score, risk_index)


def _override(packet: SystemStatePacket, heads: NetworkHeads | None, failure: str) -> str:
    if packet.training_loss is not None and not math.isfinite(packet.training_loss):
        return "loss_not_finite"
    return failure if heads is None else ""


def _common_annotations(facts: StepFacts, stamp: Stamp) -> dict[str, str]:
    return {
        "policy_version": stamp.policy_version,
        "decision_latency_ms": f"{stamp.elapsed_ms:.3f}",
        "feature_coverage": f"{facts.coverage_average:.3f}",
        "coverage_map": _compact_json(facts.coverage_keys),
        "coverage_types": _compact_json(facts.coverage_types),
    }


def _network_annotations(facts: StepFacts, heads: NetworkHeads, selection: Selection) -> dict[str, str]:
    annotations = {
        "policy_action": str(selection.slot.index),
        "policy_action_name": selection.slot.action.value,
        "policy_param_delta": f"{selection.param:.6f}",
        "policy_digest": heads.policy_digest,
        "policy_value_estimate": f"{heads.value_estimate:.6f}",
        "why": _compact_json({"layers": _top_layers(facts.layer_ids, heads)}),
    }
    if selection.seed is not None:
        annotations["selected_seed"] = facts.seeds[selection.seed].seed_id
    if selection.kernel is not None:
        annotations["selected_blueprint"] = facts.kernels[selection.kernel].blueprint_id
    if selection.blending is not None:
        annotations["blending_method"] = selection.blending.method
        annotations["blending_schedule_units"] = SCHEDULE_UNITS
        annotations["blending_schedule_start"] = f"{selection.blending.start:.4f}"
        annotations["blending_schedule_end"] = f"{selection.blending.end:.4f}"
    return annotations


def _top_layers(layer_ids: Sequence[str], heads: NetworkHeads) -> dict[str, float]:
    """Return the layers that received most attention, with their share of it."""
    order = np.argsort(-heads.layer_attention, kind="stable")[:TOP_LAYERS]
    return {layer_ids[i]: float(heads.layer_attention[i]) for i in order if heads.layer_attention[i] > 0}


def _command(
    facts: StepFacts, stamp: Stamp, selection: Selection | None, annotations: dict[str, str]
) -> AdaptationCommand:
    action = selection.slot.action if selection is not None else Action.PAUSE
    seed_operation = _seed_operation(facts, selection) if selection is not None else None
    optimizer_adjustment = (
        _optimizer_adjustment(facts, selection, stamp.lr_change_max)
        if selection is not None and action is Action.OPTIMIZER
        else None
    )
    target = facts.seeds[selection.seed].seed_id if selection is not None and selection.seed is not None else ""
    return AdaptationCommand(
        command_id=stamp.command_id,
        command_type=_COMMAND_TYPES[action],
        target_seed_id=target,
        execution_deadline_ms=stamp.execution_deadline_ms,
        issued_at=stamp.issued_at,
        run_id=facts.packet.run_id,
        packet_id=facts.packet.packet_id,
        global_step=facts.packet.global_step,
        superseded_packet_ids=list(facts.superseded_packet_ids),
        seed_operation=seed_operation,
        optimizer_adjustment=optimizer_adjustment,
        annotations=annotations,
    )


#: PAUSE without a target is the documented no-op (domain.md §4.7): it also carries "hold".
_COMMAND_TYPES: dict[Action, CommandType] = {
    Action.GRAFT: CommandType.SEED,
    Action.GERMINATE: CommandType.SEED,
    Action.CULL: CommandType.SEED,
    Action.OPTIMIZER: CommandType.OPTIMIZER,
    Action.PAUSE: CommandType.PAUSE,
    Action.HOLD: CommandType.PAUSE,
}


def _seed_operation(facts: StepFacts, selection: Selection) -> CommandSeedOperation | None:
    if selection.slot.action is Action.CULL:
        return CommandSeedOperation(operation=SeedOperation.CULL)
    if selection.kernel is None or selection.blending is None:
        return None
    blending = selection.blending
    return CommandSeedOperation(
        operation=SeedOperation.GERMINATE,
        blueprint_id=facts.kernels[selection.kernel].blueprint_id,
        parameters={
            "blending_method_index": float(blending.index),
            "blending_schedule_start": blending.start,
            "blending_schedule_end": blending.end,
        },
    )


def _optimizer_adjustment(
    facts: StepFacts, selection: Selection, lr_change_max: float
) -> CommandOptimizerAdjustment:
    """Return a learning-rate change relative to the present rate: 0.1 = ten per cent more."""
    return CommandOptimizerAdjustment(
        optimizer_id=facts.optimizer_families[0],
        hyperparameters={"lr_change": selection.param * lr_change_max},
    )


def _compact_json(values: Mapping[str, object]) -> str:
    return json.dumps(
        {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()},
        separators=(",", ":"),
    )
