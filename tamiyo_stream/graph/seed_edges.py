"""Which layers a seed watches and which parameters it may touch (``domain.md`` §2.13, §4.9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.enums import SeedLifecycleStage
from schemas.kasmina import SeedState
from schemas.urza import Blueprint, BlueprintGraph, Capabilities, Monitors
from tamiyo_stream.graph.structures import IndexArray

#: Layers watched by a seed that nobody binds (requirements 000: k = 3).
TOP_LAYERS = 3
#: Edges of a relation that nobody listed, every node to every other; beyond, each node gets its share of them.
#: Lists are bounded by the size of the message they came in, products of two messages are not.
MAX_IMPLIED_EDGES = 250_000
_LAST_STAGE = 11
#: Stages in which a seed blends or has blended; a culled or embargoed seed has a higher number and may touch
#: nothing.
_BLENDING_STAGES = frozenset(
    {
        SeedLifecycleStage.BLENDING,
        SeedLifecycleStage.SHADOWING,
        SeedLifecycleStage.PROBATIONARY,
        SeedLifecycleStage.FOSSILIZED,
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Unsorted edges: [E] positions of both ends, and of the entry each came from (None: from none)."""

    source: IndexArray
    target: IndexArray
    origin: IndexArray | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def origins(self) -> IndexArray:
        """[E] origin of each edge, -1 where none."""
        return self.origin if self.origin is not None else np.full(len(self.source), -1, dtype=np.int64)

    def take(self, rows: IndexArray) -> Links:
        """Return the edges at ``rows``."""
        return Links(self.source[rows], self.target[rows], None if self.origin is None else self.origin[rows])


def seed_structure(seed: SeedState, position: int, blueprint: Blueprint | None) -> tuple[object, ...]:
    """Return what of ``seed`` shapes the graph: equal tuples, equal edges."""
    graph = blueprint.graph if blueprint is not None else None
    monitored = seed.monitored_layers
    return (
        seed.seed_id,
        None if monitored is None else tuple(layer.layer_id for layer in monitored),
        None if graph is None else _allowed_names(graph, seed, position),
        _is_muted(graph, seed),
    )


def monitor_links(
    graph: BlueprintGraph | None, seeds: Sequence[SeedState], top_layers: Sequence[int] = ()
) -> tuple[Links, int]:
    """Return the monitor edges and how many named layers do not exist.

    A seed's own ``monitored_layers`` come first (an empty list watches nothing), then the blueprint's binding by
    seed id, then by seed position, then the layers that contribute most to the loss. Seeds beyond the blueprint's
    thresholds watch nothing.
    """
    if graph is None:
        return Links(*(np.empty(0, dtype=np.int64),) * 3), 0
    layer_ids = graph.layers.layer_id
    positions = {name: position for position, name in enumerate(layer_ids)}
    fallback = list(top_layers[:TOP_LAYERS]) or _deepest(graph)
    rows: list[tuple[int, int, int]] = []
    dropped = 0
    entries = 0
    for index, seed in enumerate(seeds):
        named = seed.monitored_layers
        if named is not None:
            watched = [(positions.get(layer.layer_id, -1), entries + i) for i, layer in enumerate(named)]
            entries += len(named)
        else:
            bound = _bound(graph.monitors, seed.seed_id, index)
            watched = [(layer, -1) for layer in (fallback if bound is None else bound)]
        known = [pair for pair in watched if 0 <= pair[0] < len(layer_ids)]
        dropped += len(watched) - len(known)
        if not _is_muted(graph, seed):
            rows.extend((index, layer, origin) for layer, origin in known)
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 3)
    return Links(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()), dropped


def implied(nodes: int, others: int) -> range:
    """Return the ``nodes`` that each of ``others`` is joined to where no list says: all, within the bound."""
    return range(min(nodes, MAX_IMPLIED_EDGES // max(others, 1)))


def allowed_links(graph: BlueprintGraph | None, seeds: Sequence[SeedState]) -> Links:
    """Return the edges from each seed to the parameters it may touch.

    Priority (``domain.md`` §4.9): the seed's own list, the blueprint's by seed id, then by seed position (an
    explicit empty list allows nothing); then ``blend_allowed``, or a stage that blends; then the host's blanket
    list of blending methods.
    """
    source: list[int] = []
    target: list[int] = []
    if graph is not None and graph.parameters is not None:
        positions = {name: position for position, name in enumerate(graph.parameters.parameter_id)}
        for index, seed in enumerate(seeds):
            names = _allowed_names(graph, seed, index)
            chosen: Sequence[int] = (
                implied(len(positions), len(seeds))
                if names is None
                else [positions[name] for name in names if name in positions]
            )
            source.extend([index] * len(chosen))
            target.extend(chosen)
    return Links(np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64))


def allowed_problems(graph: BlueprintGraph | None, seeds: Sequence[SeedState]) -> list[str]:
    """Say what of the seeds' permissions could not become an edge: unknown names, and edges over the bound."""
    if graph is None:
        return []
    parameter_ids = graph.parameters.parameter_id if graph.parameters is not None else []
    known = frozenset(parameter_ids)
    permissions = [_permission(graph, seed, position) for position, seed in enumerate(seeds)]
    unknown = sum(name not in known for names in permissions for name in names or ())
    problems = []
    if unknown:
        problems.append(f"allowed: {unknown} parameters are not in the blueprint and were dropped")
    left_out = len(parameter_ids) - len(implied(len(parameter_ids), len(seeds)))
    if left_out and None in permissions:
        problems.append(
            f"allowed: {left_out} of {len(parameter_ids)} parameters were left out for each seed that may touch "
            f"all, so as not to imply more than {MAX_IMPLIED_EDGES} edges"
        )
    return problems


def _allowed_names(graph: BlueprintGraph, seed: SeedState, position: int) -> tuple[str, ...] | None:
    """Names of the parameters that the seed may touch, each once; None = all."""
    names = _permission(graph, seed, position)
    return None if names is None else tuple(dict.fromkeys(name for name in names if name is not None))


def _permission(graph: BlueprintGraph, seed: SeedState, position: int) -> Sequence[str | None] | None:
    """Names as given, None for a position that the blueprint does not have; None = all parameters."""
    capabilities = graph.capabilities or Capabilities()
    if seed.allowed_parameters is not None:
        return seed.allowed_parameters
    by_id = capabilities.allowed_parameters_by_seed_id.get(seed.seed_id)
    if by_id is not None:
        return by_id
    by_index = capabilities.allowed_parameters_by_seed_index.get(str(position))
    if by_index is not None:
        every = graph.parameters.parameter_id if graph.parameters is not None else []
        return [every[index] if index < len(every) else None for index in by_index]
    if seed.blend_allowed is not None:
        return None if seed.blend_allowed else ()
    return None if seed.stage in _BLENDING_STAGES or capabilities.allowed_blending_methods else ()


def _bound(monitors: Monitors | None, seed_id: str, position: int) -> list[int] | None:
    if monitors is None:
        return None
    return monitors.by_seed_id.get(seed_id, monitors.by_seed_index.get(str(position)))


def _is_muted(graph: BlueprintGraph | None, seed: SeedState) -> bool:
    """Whether the blueprint's thresholds take the seed's monitor edges away; an unknown risk never does."""
    thresholds = graph.monitors.thresholds if graph is not None and graph.monitors is not None else None
    if thresholds is None:
        return False
    too_risky = (
        thresholds.risk_max is not None and seed.risk_score is not None and seed.risk_score > thresholds.risk_max
    )
    too_early = thresholds.stage_min is not None and seed.stage / _LAST_STAGE < thresholds.stage_min
    return too_risky or too_early


def _deepest(graph: BlueprintGraph) -> list[int]:
    """The deepest layers, nearest to the loss; by position among equals and where depth is unknown."""
    count = len(graph.layers.layer_id)
    depth = graph.layers.depth if graph.layers.depth is not None else np.arange(count)
    order = np.lexsort((np.arange(count), depth))
    return [int(position) for position in order[::-1][:TOP_LAYERS]]
