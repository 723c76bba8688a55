"""The annotations of a command (domain.md §4.8): what the network said, what is issued, on what, and why.

Coverage maps travel whole, whatever their size. What describes a payload is there only where that payload is.
"""

from __future__ import annotations

import math

from tamiyo_stream.policy.actions import CONTROL_SLOTS, Action
from tamiyo_stream.policy.blending import SCHEDULE_UNITS, BlendModeProfile, blend_mode_annotations
from tamiyo_stream.policy.facts import Stamp, StepFacts
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.policy.heads import NetworkHeads
from tamiyo_stream.policy.risk import POLICY
from tamiyo_stream.policy.selection import Selection
from tamiyo_stream.policy.signals import Proposal, kernel_risk, subject_sheet
from tamiyo_stream.policy.why import ratios_json


def annotate(
    facts: StepFacts,
    stamp: Stamp,
    *,
    issued: Selection,
    gated: Selection | None,
    reason: str,
    why: str,
    blend_mode: BlendModeProfile,
) -> dict[str, str]:
    """Return the annotations beside the network's own words, but for the signature, which comes last.

    ``gated`` is what the safety sheets were asked about: the network's choice, also where less was issued.
    """
    annotations = {
        "command_action": issued.action.value,
        "policy_version": stamp.policy_version,
        "risk_reason": reason,
        **_issued(facts, issued, blend_mode),
        **_safety(facts, gated),
        "decision_latency_ms": f"{stamp.elapsed_ms:.3f}",
        "feature_coverage": f"{facts.coverage_average:.3f}",
        "coverage_map": ratios_json(facts.coverage_keys),
        "coverage_types": ratios_json(facts.coverage_types),
        "why": why,
    }
    if facts.feature_manifest:
        annotations["feature_manifest"] = facts.feature_manifest
    if facts.compiled.reason:
        annotations["policy_compile_reason"] = facts.compiled.reason
    if issued.action in {Action.PAUSE, Action.HOLD} and not issued.downgraded:
        annotations["reason"] = POLICY
    return annotations


def without_network(failure: str) -> dict[str, str]:
    """Return what stands for the network's words where it had no say."""
    action = "timeout" if failure == Failure.TIMEOUT_INFERENCE else "none"
    return {"policy_action": action, "policy_param_delta": "0.0"}


def of_network(heads: NetworkHeads, selection: Selection, proposal: Proposal) -> dict[str, str]:
    """Return what the network said: its choice among the legal slots, and how it rates the state of things."""
    return {
        "policy_action": str(selection.slot.index),
        "policy_action_name": selection.action.value,
        "policy_param_delta": f"{selection.param:.6f}",
        "policy_digest": heads.policy_digest,
        "policy_value_estimate": f"{proposal.value_estimate:.6f}",
        "policy_risk_score": f"{proposal.risk_score:.6f}",
        "policy_risk_index": str(proposal.risk_index),
        "breaker_open_score": _slot_score(heads, Action.BREAKER_OPEN),
        "breaker_close_score": _slot_score(heads, Action.BREAKER_CLOSE),
    }


def _slot_score(heads: NetworkHeads, action: Action) -> str:
    logit = float(heads.policy_logits[CONTROL_SLOTS[action].index])
    return f"{0.5 * (1.0 + math.tanh(logit / 2.0)):.4f}"  # the sigmoid, without overflow


def _issued(facts: StepFacts, issued: Selection, blend_mode: BlendModeProfile) -> dict[str, str]:
    annotations: dict[str, str] = {}
    if issued.action is Action.RESUME:
        annotations["resume"] = "true"
    if issued.seed is not None:
        annotations["selected_seed"] = facts.seeds[issued.seed].seed_id
    if issued.kernel is not None:
        annotations |= {
            "selected_blueprint": facts.kernels[issued.kernel].blueprint_id,
            **_kernel(facts, issued.kernel),
        }
    if issued.blending is not None:
        annotations |= {
            "blending_method": issued.blending.method,
            "blending_schedule_units": SCHEDULE_UNITS,
            "blending_schedule_start": f"{issued.blending.start:.4f}",
            "blending_schedule_end": f"{issued.blending.end:.4f}",
            **blend_mode_annotations(blend_mode),
        }
    return annotations


def _kernel(facts: StepFacts, kernel: int) -> dict[str, str]:
    descriptor = facts.kernels[kernel].descriptor
    if descriptor is None:
        return {}
    risk = kernel_risk(facts, kernel)
    annotations = {"blueprint_tier": descriptor.tier.name}
    if descriptor.stage is not None:
        annotations["blueprint_stage"] = str(descriptor.stage)
    if risk is not None:
        annotations["blueprint_risk"] = f"{risk:.2f}"
    return annotations


def _safety(facts: StepFacts, gated: Selection | None) -> dict[str, str]:
    sheet = subject_sheet(facts, gated)
    if sheet is None:
        return {}
    annotations = {
        "bsds_blueprint": sheet.blueprint_id,
        "bsds_hazard_band": sheet.hazard_band.name,
        "bsds_handling_class": sheet.handling_class.name.lower(),
        "bsds_resource_profile": sheet.resource_profile.name.lower(),
        "bsds_provenance": sheet.provenance.name,
    }
    if sheet.risk_score is not None:
        annotations["bsds_risk"] = f"{sheet.risk_score:.2f}"
    return annotations
