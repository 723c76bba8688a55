"""Builder: one step of a run as a :class:`StepGraph`, vectorised over nodes and edges (design §6).

Structure, categories and static features are taken from a template per run; a step fills the columns that the
packet carries, the seeds' and kernels' rows where those changed, and normalises with the statistics before this
step. Whatever is missing is a default with mask 0; whatever cannot be used is named in ``StepGraph.problems``.
Nothing here raises on what upstream sends, and the run is only read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.kasmina import SeedState
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint
from tamiyo_stream.graph.blocks import Block, Encoded
from tamiyo_stream.graph.coverage import Tally, summarise
from tamiyo_stream.graph.families import EDGE_FAMILIES, NODE_FAMILIES, Family
from tamiyo_stream.graph.features import Total, Transform
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.rows import Place, fill_columns, fill_objects, monitor_subjects
from tamiyo_stream.graph.seed_edges import TOP_LAYERS, seed_structure
from tamiyo_stream.graph.sources import (
    Subjects,
    kernel_subjects,
    number,
    read,
    run_subject,
    seed_subjects,
    state_subject,
)
from tamiyo_stream.graph.structures import Coverage, FloatArray, StepGraph
from tamiyo_stream.graph.template import Template
from tamiyo_stream.graph.topology import build_topology
from tamiyo_stream.runs.state import EwmaNorm, RunState
from tamiyo_stream.runs.tables import Tables

#: Steps between rankings of the layers by loss contribution: their order wavers, and each change costs a new
#: topology.
RANKING_STEPS = 64


class _CachedRun:
    """What is kept of a run between steps."""

    def __init__(self) -> None:
        self.blueprint: Blueprint | None = None
        self.seeds: tuple[SeedState, ...] = ()
        self.shapes: tuple[Any, ...] = ()
        self.structure: tuple[Any, ...] = ()
        self.objects: tuple[Any, ...] | None = None
        self.reading = 0
        self.template: Template | None = None
        self.raw: dict[str, FloatArray] = {}
        self.encoded: dict[str, Encoded] = {}
        self.tallies: list[Tally] = []
        self.coverage: Coverage | None = None
        self.top_layers: tuple[int, ...] = ()
        self.ranked_in = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What all families of one step are written from.

    ``unchanged``: the buffers hold the slots of seeds and kernels as they were last read.
    """

    cached: _CachedRun
    template: Template
    subjects: Subjects
    norms: Mapping[str, EwmaNorm]
    unchanged: bool


class GraphBuilder:
    """Builds step graphs; caches one structure per run, the least recently built run leaves first.

    Args:
        registries: number the categories; grow as new ones are seen.
        max_cached: runs kept.
        deadline_ms: budget of a decision, for ``latency_budget_utilisation``.
    """

    def __init__(self, registries: Registries, *, max_cached: int = 32, deadline_ms: float = 45.0) -> None:
        self._registries = registries
        self._max_cached = max_cached
        self._deadline_ms = deadline_ms
        self._runs: OrderedDict[str, _CachedRun] = OrderedDict()

    def build(self, run: RunState, packet: SystemStatePacket, tables: Tables) -> StepGraph:
        """Return the graph of ``packet``, normalised with ``run.norms`` as they are. ``run`` is not changed.

        Never raises on missing or unusable data: that is masked, counted in ``coverage`` and named in
        ``problems``.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._build(run, packet, tables)

    def samples(self, run: RunState, packet: SystemStatePacket) -> dict[str, FloatArray]:
        """Return what this packet tells about each moving statistic, by prior name: flat arrays, NaN for missing.

        For :func:`tamiyo_stream.runs.norms.observe`, after :meth:`build`. Columns count whether or not they fit
        the blueprint: they were measured, only their place is unknown.
        """
        seeds = _seeds_of(run, packet)
        found: dict[str, list[FloatArray]] = {}
        for prior, sources in _SAMPLED:
            if sources[0].startswith("seed."):
                values = [read(sources, {"seed": seed}) for seed in seeds]
            else:
                values = [read(sources, {"state": packet})]
            arrays = [np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values if value is not None]
            found.setdefault(prior, []).extend(array.astype(np.float64) for array in arrays)
        return {prior: np.concatenate(arrays) for prior, arrays in found.items() if arrays}

    def forget(self, run_id: str) -> None:
        """Drop what is cached for a run that ended."""
        self._runs.pop(run_id, None)

    def _build(self, run: RunState, packet: SystemStatePacket, tables: Tables) -> StepGraph:
        blueprint, problems = _host_of(run, packet, tables)
        seeds = _seeds_of(run, packet)
        kernels = tuple(tables.kernels.values())
        cached = self._cached(run.run_id)
        template = self._template(cached, blueprint, seeds, kernels, packet)
        self._read_objects(cached, template, seeds, kernels, tables)
        state, unused = state_subject(packet, _counts(template, packet))
        subjects = {
            "state": state,
            "blueprint": blueprint,
            "sheet": tables.sheets.get(blueprint.blueprint_id) if blueprint is not None else None,
            "run": run_subject(run, self._deadline_ms),
        }
        buffers = template.acquire()
        step = _Step(cached, template, subjects, run.norms, unchanged=buffers.objects == cached.reading)
        tallies = list(template.tallies)
        for node_type, family in NODE_FAMILIES.items():
            tallies += self._write(family, buffers.x[node_type], step, None)
        for relation, family in EDGE_FAMILIES:
            wiring = template.built.wirings[relation.edge_type]
            forward = buffers.attributes[relation.edge_type]
            tallies += self._write(family, forward, step, (relation, wiring))
            settled = family.is_static or (step.unchanged and family.name in cached.encoded)
            if len(wiring) and not settled:
                reverse = buffers.attributes[relation.reverse_type]
                np.take(forward, wiring.reverse_order, axis=0, out=reverse, mode="clip")
        buffers.objects = cached.reading
        return StepGraph(
            run_id=run.run_id,
            packet_id=packet.packet_id,
            global_step=packet.global_step,
            topology=template.built.topology,
            x_dict=dict(buffers.x),
            edge_attr_dict=dict(buffers.attributes),
            coverage=_coverage(cached, template, tallies),
            problems=(*problems, *template.built.problems, *unused),
        )

    def _write(self, family: Family, target: FloatArray, step: _Step, place: Place | None) -> Iterator[Tally]:
        """Write one family's changing slots into ``target`` and count what was there."""
        cached = step.cached
        fan_out = float(place[1].max_fan_out) if place is not None else math.nan
        totals = {Total.DEPTH: step.template.depth, Total.FAN_OUT: fan_out}
        for block, scalar in ((family.scalar, True), (family.column, False)):
            if not block.fields:
                continue
            if not len(target):
                yield Tally(family.name, block.keys, block.mandatory, block.absent, 0)
                continue
            encoded = None if scalar else cached.encoded.get(family.name)
            if encoded is None or not step.unchanged:
                raw = None if scalar else cached.raw.get(family.name)
                keep = raw is not None and not block.is_moving
                if raw is None and scalar:
                    raw = self._scalars(block, step.subjects)
                elif raw is None:
                    raw = fill_columns(block, step.subjects, len(target), place)
                encoded = block.encode(raw, step.norms, totals)
                block.write(target, encoded)
                if keep:
                    cached.encoded[family.name] = encoded
            yield Tally(family.name, block.keys, block.mandatory, block.tally(encoded), len(target))

    def _scalars(self, block: Block, subjects: Subjects) -> FloatArray:
        raw = block.empty(1)
        for entry, rows in zip(block.fields, block.slices, strict=True):
            raw[rows] = number(read(entry.sources, subjects), entry, self._registries)
        return raw

    def _cached(self, run_id: str) -> _CachedRun:
        cached = self._runs.get(run_id)
        if cached is None:
            cached = self._runs[run_id] = _CachedRun()
            while len(self._runs) > self._max_cached:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run_id)
        return cached

    def _template(
        self,
        cached: _CachedRun,
        blueprint: Blueprint | None,
        seeds: tuple[SeedState, ...],
        kernels: tuple[Blueprint, ...],
        packet: SystemStatePacket,
    ) -> Template:
        if cached.blueprint is not blueprint:
            cached.top_layers, cached.ranked_in = (), -1
        if cached.blueprint is not blueprint or cached.seeds != seeds:
            cached.blueprint, cached.seeds = blueprint, seeds
            cached.shapes = tuple(seed_structure(seed, position, blueprint) for position, seed in enumerate(seeds))
        if any(seed.monitored_layers is None for seed in seeds):
            _rank_layers(cached, blueprint, packet)
        structure = (blueprint, kernels, cached.shapes, cached.top_layers)
        if cached.template is None or structure != cached.structure:
            built = build_topology(blueprint, seeds, kernels, top_layers=cached.top_layers)
            cached.template = Template(blueprint, built, self._registries)
            cached.structure = structure
            cached.objects = None
            cached.coverage = None
        return cached.template

    def _read_objects(
        self,
        cached: _CachedRun,
        template: Template,
        seeds: tuple[SeedState, ...],
        kernels: tuple[Blueprint, ...],
        tables: Tables,
    ) -> None:
        """Read seeds and kernels again where one of them, or what is attached to it, was replaced."""
        attached = [seed.blueprint_id or "" for seed in seeds]
        objects = (
            seeds,
            tuple(map(tables.kernels.get, attached)),
            tuple(map(tables.sheets.get, attached)),
            tuple(tables.sheets.get(kernel.blueprint_id) for kernel in kernels),
        )
        if objects == cached.objects:
            return
        cached.objects = objects
        cached.reading += 1
        cached.encoded = {}
        of_seeds = [seed_subjects(seed, tables) for seed in seeds]
        of_kernels = [kernel_subjects(kernel, tables, self._registries) for kernel in kernels]
        cached.raw = {
            NODE_FAMILIES[node_type].name: fill_objects(
                NODE_FAMILIES[node_type].column, subjects, self._registries
            )
            for node_type, subjects in (("seed", of_seeds), ("blueprint", of_kernels))
        }
        for relation, family in EDGE_FAMILIES:
            wiring = template.built.wirings[relation.edge_type]
            if relation.name == "monitors":
                per_edge = monitor_subjects(seeds, wiring)
                cached.raw[family.name] = fill_objects(family.column, per_edge, self._registries)
            elif relation.name == "allowed":
                per_seed = fill_objects(family.column, of_seeds, self._registries)
                cached.raw[family.name] = per_seed[:, wiring.source]
            elif relation.name == "targets":
                per_kernel = fill_objects(family.column, of_kernels, self._registries)
                cached.raw[family.name] = per_kernel[:, wiring.target]


def _seeds_of(run: RunState, packet: SystemStatePacket) -> tuple[SeedState, ...]:
    return tuple(run.seeds.values()) if run.seeds else tuple(packet.seed_states or ())


def _host_of(run: RunState, packet: SystemStatePacket, tables: Tables) -> tuple[Blueprint | None, list[str]]:
    """Return the host blueprint, None unless it has a graph, and why there is none."""
    blueprint_id = packet.blueprint_id or run.blueprint_id
    if blueprint_id is None:
        return None, ["blueprint: neither the packet nor the run names the host model's blueprint"]
    blueprint = tables.hosts.get(blueprint_id)
    if blueprint is None:
        return None, [f"blueprint: {blueprint_id!r} has not arrived"]
    if blueprint.graph is None:
        return None, [f"blueprint: {blueprint_id!r} was published without a graph"]
    return blueprint, []


def _coverage(cached: _CachedRun, template: Template, tallies: list[Tally]) -> Coverage:
    """Summarise ``tallies``; most steps bring what the step before them brought."""
    if cached.coverage is None or tallies != cached.tallies:
        cached.tallies, cached.coverage = tallies, summarise(tallies, template.withheld)
    return cached.coverage


def _counts(template: Template, packet: SystemStatePacket) -> dict[str, int | None]:
    """Lengths that the packet's columns must have; none fits when they belong to another version."""
    blueprint = template.blueprint
    if blueprint is not None and packet.blueprint_version not in (None, blueprint.blueprint_version):
        return dict.fromkeys(template.counts)
    return template.counts


def _rank_layers(cached: _CachedRun, blueprint: Blueprint | None, packet: SystemStatePacket) -> None:
    """Rank the layers by loss contribution when none are ranked yet, then once per window of steps."""
    window = packet.global_step // RANKING_STEPS
    if cached.top_layers and cached.ranked_in == window:
        return
    graph = blueprint.graph if blueprint is not None else None
    shares = packet.layers.loss_contribution if packet.layers is not None else None
    if blueprint is None or graph is None or shares is None or len(shares) != len(graph.layers.layer_id):
        return
    if packet.blueprint_version not in (None, blueprint.blueprint_version):
        return
    known = np.where(np.isfinite(shares), np.asarray(shares), -np.inf)
    order = np.argsort(-known, kind="stable")[:TOP_LAYERS]
    cached.top_layers = tuple(sorted(int(position) for position in order if np.isfinite(known[position])))
    cached.ranked_in = window


def _sampled() -> tuple[tuple[str, tuple[str, ...]], ...]:
    families = [*NODE_FAMILIES.values(), *(family for _, family in EDGE_FAMILIES)]
    pairs = {
        (entry.prior, tuple(source for source in entry.sources if source.startswith(("state.", "seed.")))): None
        for family in families
        for entry in family.fields
        if entry.transform is Transform.EWMA and not entry.sources[0].startswith("run.")
    }
    return tuple(pairs)


#: (prior, sources) of every moving statistic, each once. A published constant is no sample.
_SAMPLED = _sampled()
