"""A command in words: why it is what it is, from its annotations alone. Pure text, one line per fact."""

from __future__ import annotations

import json
from collections.abc import Mapping

from schemas.enums import CommandType, SeedOperation
from schemas.tamiyo import AdaptationCommand

#: Coverage keys named as the least covered.
NAMED_KEYS = 5


def explain(command: AdaptationCommand) -> list[str]:
    """Return what ``command`` asks for, on what grounds, and what was seen, for people to read.

    What an annotation does not say, or says in a form that cannot be read, is left out.
    """
    notes = command.annotations
    return [
        f"run {command.run_id}, step {command.global_step} (packet {command.packet_id})",
        f"command {command.command_id}: {_asks_for(command)}",
        *_lines(notes, _NOTES),
        *_network(notes),
        *_attention(notes),
        *_rules(notes),
        *_coverage(notes),
        *_superseded(command),
    ]


#: Annotation -> the line it makes, in this order.
_NOTES: tuple[tuple[str, str], ...] = (
    ("risk_reason", "reason: {}"),
    ("policy_version", "policy: {}"),
    ("policy_digest", "weights: {}"),
    ("decision_latency_ms", "decided after {} ms"),
    ("policy_risk_score", "risk score: {} (expected severity, 0 harmless to 1 critical)"),
    ("policy_value_estimate", "expected uplift: {}"),
    ("bsds_hazard_band", "safety sheet: hazard band {}"),
    ("bsds_handling_class", "safety sheet: handling {}"),
    ("blueprint_risk", "kernel risk: {}"),
    ("policy_compile_reason", "network not compiled: {}"),
)


def _asks_for(command: AdaptationCommand) -> str:
    target = f" seed {command.target_seed_id}" if command.target_seed_id else ""
    operation, adjustment, breaker = command.seed_operation, command.optimizer_adjustment, command.circuit_breaker
    if operation is not None:
        verb = operation.operation.name.lower()
        kernel = f" with {operation.blueprint_id}" if operation.operation is SeedOperation.GERMINATE else ""
        return f"{verb}{target}{kernel}{_values(operation.parameters)}"
    if adjustment is not None:
        return f"adjust {adjustment.optimizer_id}{_values(adjustment.hyperparameters)}"
    if breaker is not None:
        return f"set the kernel breaker to {breaker.desired_state.name}"
    if command.command_type is CommandType.PAUSE:
        verb = "resume" if command.annotations.get("resume") == "true" else "pause"
        return f"{verb}{target}" if target else "pause without target (changes nothing)"
    return command.command_type.name.lower() + target


def _values(values: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f" ({shown})" if shown else ""


def _lines(notes: Mapping[str, str], table: tuple[tuple[str, str], ...]) -> list[str]:
    return [text.format(notes[name]) for name, text in table if name in notes]


def _network(notes: Mapping[str, str]) -> list[str]:
    told = _map(notes, "why")
    lines = []
    choice, preferred = told.get("choice"), told.get("preferred")
    if isinstance(choice, Mapping):
        about = "".join(f", {part} {choice[part]}" for part in ("seed", "kernel") if part in choice)
        downgraded = notes.get("command_action", choice.get("action")) != choice.get("action")
        lines.append(
            f"the network chose {choice.get('action')}{about}"
            + (f"; the risk engine left {notes['command_action']}" if downgraded else "")
        )
    if isinstance(preferred, Mapping):
        slot, action, refused = (preferred.get(part) for part in ("slot", "action", "refused"))
        lines.append(f"it would have preferred {action} (slot {slot}): refused, {refused}")
    return lines


def _attention(notes: Mapping[str, str]) -> list[str]:
    told, lines = _map(notes, "why"), []
    for kind in ("layers", "seeds"):
        shares = told.get(kind)
        if isinstance(shares, Mapping) and shares:
            lines.append(f"attends to {kind}: " + ", ".join(f"{name} ({share})" for name, share in shares.items()))
    return lines


def _rules(notes: Mapping[str, str]) -> list[str]:
    rules = _map(notes, "why").get("rules")
    return [
        f"rule {rule.get('rule')}: {rule.get('signal')} {rule.get('value')} against {rule.get('threshold')}"
        f" -> {rule.get('action')}"
        for rule in (rules if isinstance(rules, list) else ())
        if isinstance(rule, Mapping)
    ]


def _coverage(notes: Mapping[str, str]) -> list[str]:
    if "feature_coverage" not in notes:
        return []
    keys = {name: share for name, share in _map(notes, "coverage_map").items() if isinstance(share, int | float)}
    least = sorted(keys, key=lambda name: (keys[name], name))[:NAMED_KEYS]
    named = "; least covered: " + ", ".join(f"{name} ({keys[name]})" for name in least) if least else ""
    return [f"feature coverage: {notes['feature_coverage']}{named}"]


def _superseded(command: AdaptationCommand) -> list[str]:
    count = len(command.superseded_packet_ids)
    return [f"also answers {count} older packets"] if count else []


def _map(notes: Mapping[str, str], name: str) -> Mapping[str, object]:
    try:
        told = json.loads(notes.get(name, "{}"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
