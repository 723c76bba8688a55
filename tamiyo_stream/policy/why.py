"""Why a decision is what it is: attention, fired rules and the network's own preference, as compact JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np

from tamiyo_stream.policy.facts import StepFacts
from tamiyo_stream.policy.heads import FloatArray, NetworkHeads
from tamiyo_stream.policy.risk import FiredRule
from tamiyo_stream.policy.selection import Preference, Selection

#: Layers and seeds named in a command's ``why``.
TOP_NODES = 3
DIGITS = 4


def why(
    facts: StepFacts,
    heads: NetworkHeads | None,
    fired: Sequence[FiredRule],
    selection: Selection | None = None,
    preferred: Preference | None = None,
) -> str:
    """Return the ``why`` annotation.

    ``layers`` and ``seeds``: name -> share of the attention, largest first. ``rules``: what fired, with its value,
    threshold and what it did. ``choice``: what the network chose among the legal slots, ``preferred``: the slot it
    would have taken without the mask and why it may not, where that differs.
    """
    told: dict[str, object] = {}
    if heads is not None:
        told["layers"] = _top(facts.layer_ids, heads.layer_attention)
        told["seeds"] = _top([seed.seed_id for seed in facts.seeds], heads.seed_attention)
    if selection is not None:
        told["choice"] = _choice(facts, selection)
    if preferred is not None and preferred.refusal:
        told["preferred"] = {
            "slot": preferred.slot.index,
            "action": preferred.slot.action.value,
            "refused": preferred.refusal,
        }
    told["rules"] = [_rule(item) for item in fired]
    return compact_json(told)


def compact_json(values: Mapping[str, object]) -> str:
    """Return ``values`` as compact JSON; floats have four digits, what is not finite becomes null."""
    return json.dumps(_plain(values), separators=(",", ":"), allow_nan=False)


def ratios_json(ratios: Mapping[str, float]) -> str:
    """Return finite ``ratios`` as :func:`compact_json` does, for the large flat maps of every command."""
    return json.dumps({key: round(value, DIGITS) for key, value in ratios.items()}, separators=(",", ":"))


def _top(names: Sequence[str], attention: FloatArray) -> dict[str, float]:
    """Return the nodes with most attention, largest first, of equals the first; sorting all would cost more."""
    contenders = np.arange(len(attention))
    if len(attention) > TOP_NODES:
        contenders = np.flatnonzero(attention >= np.partition(attention, -TOP_NODES)[-TOP_NODES])
    order = contenders[np.argsort(-attention[contenders], kind="stable")][:TOP_NODES]
    return {names[i]: float(attention[i]) for i in order if attention[i] > 0}


def _choice(facts: StepFacts, selection: Selection) -> dict[str, object]:
    chosen: dict[str, object] = {"slot": selection.slot.index, "action": selection.action.value}
    if selection.seed is not None:
        chosen["seed"] = facts.seeds[selection.seed].seed_id
    if selection.kernel is not None:
        chosen["kernel"] = facts.kernels[selection.kernel].blueprint_id
    return chosen


def _rule(item: FiredRule) -> dict[str, object]:
    return {
        "rule": item.rule.event,
        "signal": item.rule.when[0].signal,
        "value": item.value,
        "threshold": item.threshold,
        "action": item.action.name.lower(),
    }


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(float(value), DIGITS) if math.isfinite(value) else None
    return value.name if isinstance(value, Enum) and not isinstance(value, str) else value
