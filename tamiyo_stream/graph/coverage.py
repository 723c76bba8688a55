"""Coverage: the share of what the graph wants that upstream actually sent (``domain.md`` §6.4).

Counted from presence, before any default is filled in. A key is left out where the run has nothing it could
describe (no seeds, no kernels); it is 0 where the data was due but the blueprint, or its section, has not arrived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.urza import Adjacency, Blueprint
from tamiyo_stream.graph.structures import Coverage


@dataclass(frozen=True, slots=True)
class Tally:
    """Shares present of one family's ``keys`` over ``rows`` nodes or edges; a NaN share was not observed."""

    family: str
    keys: tuple[str, ...]
    mandatory: tuple[bool, ...]
    shares: list[float]
    rows: int


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


def summarise(tallies: Iterable[Tally], withheld: frozenset[str]) -> Coverage:
    """Return per-key shares, shares per type, and both averages (0 where nothing was observed).

    All keys of a type describe the same nodes or edges, so their mean is the share weighted by count.
    """
    keys: dict[str, float] = {}
    types: dict[str, tuple[float, int]] = {}
    mandatory: list[float] = []
    for tally in tallies:
        absent = not tally.rows
        if absent and tally.family not in withheld:
            continue
        present, observed = types.get(tally.family, (0.0, 0))
        for key, required, share in zip(tally.keys, tally.mandatory, tally.shares, strict=True):
            if math.isnan(share):  # always known, so it says nothing about upstream
                continue
            share = 0.0 if absent else share  # noqa: PLW2901 - the share of nothing is nothing
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
