"""Step values: everything that can change from one step to the next, read from the subjects in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from tamiyo_stream.graph.families import FAMILIES
from tamiyo_stream.graph.sources import path_of, walk

#: Sources whose values stay while blueprint and safety sheet do.
SETTLED_SOURCES = ("blueprint.", "sheet.")


def _step_sources() -> tuple[str, ...]:
    fields = [entry for family in FAMILIES for entry in family.step]
    return tuple(dict.fromkeys(s for entry in fields for s in entry.sources if not s.startswith(SETTLED_SOURCES)))


def _group_of(source: str) -> str:
    """Column group of ``state.layers.latency_ms``: ``layers``; empty for what is one value."""
    path = path_of(source)
    one_value = len(path) != 3 or path[1] in {"training_metrics", "hardware_context"}
    return "" if one_value else path[1]


_ALL = _step_sources()
_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(source for source in _ALL if _group_of(source) == group)
    for group in dict.fromkeys(map(_group_of, _ALL))
    if group
}
_GETTERS: tuple[tuple[str, Callable[[Any], Any], tuple[None, ...]], ...] = tuple(
    (group, attrgetter(*(path_of(source)[2] for source in sources)), (None,) * len(sources))
    for group, sources in _GROUPS.items()
)
_OF_SEEDS = tuple(source for source in _ALL if source.startswith("seed."))
_SINGLE = tuple(source for source in _ALL if not _group_of(source) and source not in _OF_SEEDS)
#: The sources in the order of :func:`step_values`.
STEP_SOURCES: tuple[str, ...] = (*(s for group in _GROUPS.values() for s in group), *_SINGLE, *_OF_SEEDS)
_SINGLE_PATHS = tuple(map(path_of, _SINGLE))


def step_values(state: Mapping[str, Any], run: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[Any]:
    """Return the value at each of :data:`STEP_SOURCES`: a column, a number, or None where there is none.

    Args:
        state: the ``state`` subject.
        run: the ``run`` subject.
        seeds: columns of the seeds by source.
    """
    values: list[Any] = []
    for group, getter, nothing in _GETTERS:
        columns = state.get(group)
        values += nothing if columns is None else getter(columns)
    subjects = {"state": state, "run": run}
    values += [walk(path, subjects) for path in _SINGLE_PATHS]
    values += map(seeds.get, _OF_SEEDS)
    return values
