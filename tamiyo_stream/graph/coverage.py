"""Coverage: the share of what the graph wants that upstream actually sent (``domain.md`` §6.4).

Counted from presence, before any default is filled in. A key is left out where the run has nothing it could
describe (no seeds, no kernels); it is 0 where the data was due but the blueprint, or its section, has not arrived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.urza import Adjacency, Blueprint
from tamiyo_stream.graph.blocks import Block, Field, Target
from tamiyo_stream.graph.families import BY_TARGET
from tamiyo_stream.graph.structures import Coverage


@dataclass(frozen=True, slots=True)
class Tally:
    """Shares present of one family's ``keys``; ``rows`` = 0: it has no nodes or edges.

    A NaN share was not observed.
    """

    family: str
    keys: tuple[str, ...]
    mandatory: tuple[bool, ...]
    shares: list[float]
    rows: int


def tallies_of(block: Block, counts: Sequence[int]) -> list[Tally]:
    """Return a tally per target of ``block``.

    Args:
        block: its parts.
        counts: nodes or edges that have each part.
    """
    found: dict[Target, list[tuple[Field, float]]] = {}
    for part, count in zip(block.parts, counts, strict=True):
        share = count / part.count if part.field.counted else math.nan
        found.setdefault(part.target, []).append((part.field, share))
    return [_tally(target, fields, 1) for target, fields in found.items()]


def empty_tally(target: Target) -> Tally:
    """Return the tally of a target without nodes or edges."""
    fields = [(entry, 0.0 if entry.counted else math.nan) for entry in BY_TARGET[target].fields]
    return _tally(target, fields, 0)


def _tally(target: Target, fields: Sequence[tuple[Field, float]], rows: int) -> Tally:
    return Tally(
        BY_TARGET[target].name,
        tuple(entry.key for entry, _ in fields),
        tuple(entry.mandatory for entry, _ in fields),
        [share for _, share in fields],
        rows,
    )


def withheld_families(blueprint: Blueprint | None) -> frozenset[str]:
    """Return the families that a host model always has but whose description has not arrived."""
    graph = blueprint.graph if blueprint is not None else None
    adjacency = (graph.adjacency if graph is not None else None) or Adjacency()
    derived = graph is not None and graph.activations is None
    missing = {
        "node.layer": graph is None,
        "node.activation": graph is None,
        "node.parameter": graph is None or graph.parameters is None,
        "edges.layer_connects": graph is None,
        "edges.layer_feeds": adjacency.feeds is None and not derived,
        "edges.activation_influences": adjacency.influences is None and not derived,
        "edges.parameter_tunes": adjacency.tunes is None,
    }
    return frozenset(family for family, absent in missing.items() if absent)


#: Families that exist only where a service has spoken.
_OF_KASMINA = frozenset({"node.seed", "edges.seed_monitors", "edges.seed_param_allowed", "edges.global_operates"})
_OF_URZA = frozenset({"node.blueprint", "edges.parameter_targets"})


def silent_families(*, seeds_exported: bool, kernels_known: bool) -> frozenset[str]:
    """Return the families of services that have sent nothing at all.

    An export without seeds says that there are none; no export says nothing.
    """
    spoken = {_OF_KASMINA: seeds_exported, _OF_URZA: kernels_known}
    return frozenset(family for families, heard in spoken.items() if not heard for family in families)


def summarise(tallies: Iterable[Tally], withheld: frozenset[str]) -> Coverage:
    """Return per-key shares, shares per type, and both averages (0 where nothing was observed).

    All keys of a type describe the same nodes or edges, so their mean is the share weighted by count.
    """
    keys: dict[str, float] = {}
    types: dict[str, tuple[float, int]] = {}
    mandatory: list[float] = []
    for tally in tallies:
        if not tally.rows and tally.family not in withheld:
            continue
        present, observed = types.get(tally.family, (0.0, 0))
        for key, required, share in zip(tally.keys, tally.mandatory, tally.shares, strict=True):
            if math.isnan(share):  # always known, so it says nothing about upstream
                continue
            keys[key] = share
            present += share
            observed += 1
            if required:
                mandatory.append(share)
        types[tally.family] = (present, observed)
    return Coverage(
        keys=keys,
        types={family: present / observed for family, (present, observed) in types.items() if observed},
        average=_mean(list(keys.values())),
        mandatory=_mean(mandatory),
    )


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0
