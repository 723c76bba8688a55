"""Builder: one step of a run as a :class:`StepGraph`, vectorised over nodes and edges (design §6).

Structure, categories and static features are taken from a template per run; a step fills the columns that the
packet carries, the seeds' and kernels' rows where those changed, and normalises with the statistics before this
step. Whatever is missing is a default with mask 0; whatever cannot be used is named in ``StepGraph.problems``.
Nothing here raises on what upstream sends, and the run is only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.kasmina import SeedState
from schemas.tolaria import SystemStatePacket
from schemas.urza import Blueprint
from tamiyo_stream.graph.blocks import Target
from tamiyo_stream.graph.caps import MAX_EDGES, MAX_NODES
from tamiyo_stream.graph.coverage import silent_families, summarise
from tamiyo_stream.graph.families import BY_TARGET, FAMILIES
from tamiyo_stream.graph.features import Transform
from tamiyo_stream.graph.objects import KERNEL_FIELDS, SEED_FIELDS, read_objects
from tamiyo_stream.graph.program import Program
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.run_cache import CachedRun, RunCache
from tamiyo_stream.graph.seed_edges import TOP_LAYERS, seed_structure
from tamiyo_stream.graph.sources import kernel_subjects, read, run_subject, seed_subjects, state_subject
from tamiyo_stream.graph.step_values import step_values
from tamiyo_stream.graph.structures import Coverage, StepGraph
from tamiyo_stream.graph.template import Buffers, Template
from tamiyo_stream.graph.topology import build_topology
from tamiyo_stream.runs.state import EwmaNorm, RunState
from tamiyo_stream.runs.tables import Tables

#: Steps between rankings of the layers by loss contribution: their order wavers, and each change costs a new
#: topology.
RANKING_STEPS = 64
#: A statistic's measurements, [N] float64.
SampleArray = npt.NDArray[Any]
#: Most problems that a graph names, and most characters of each.
MAX_PROBLEMS = 32
MAX_PROBLEM_LENGTH = 300


class GraphBuilder:
    """Builds step graphs; keeps the structure and the buffers of each run between its steps.

    For one thread at a time. The graphs are anyone's to read, and their arrays nobody's to write.

    Args:
        registries: number the categories; grow as new ones are seen.
        max_cached: runs kept; the least recently built leaves first.
        max_cached_bytes: bytes of arrays kept over all runs.
        max_nodes: nodes above which a graph's in-degrees are capped (``caps``).
        max_edges: as ``max_nodes``, edges of the forward relations.
        deadline_ms: budget of a decision, for ``latency_budget_utilisation``.
    """

    def __init__(
        self,
        registries: Registries,
        *,
        max_cached: int = 256,
        max_cached_bytes: int = 1 << 30,
        max_nodes: int = MAX_NODES,
        max_edges: int = MAX_EDGES,
        deadline_ms: float = 45.0,
    ) -> None:
        self._registries = registries
        self._limits = {"max_nodes": max_nodes, "max_edges": max_edges}
        self._deadline_ms = deadline_ms
        self._runs = RunCache(max_runs=max_cached, max_bytes=max_cached_bytes)

    def build(self, run: RunState, packet: SystemStatePacket, tables: Tables) -> StepGraph:
        """Return the graph of ``packet``, normalised with ``run.norms`` as they are. ``run`` is not changed.

        Never raises on missing or unusable data: that is masked, counted in ``coverage`` and named in
        ``problems``.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._build(run, packet, tables)

    def samples(self, run: RunState, packet: SystemStatePacket) -> dict[str, SampleArray]:
        """Return what this packet tells about each moving statistic, by prior name: flat arrays, NaN for missing.

        For :func:`tamiyo_stream.runs.norms.observe`, after :meth:`build`. Columns count whether or not they fit
        the blueprint: they were measured, only their place is unknown.
        """
        seeds = _seeds_of(run, packet)
        found: dict[str, list[SampleArray]] = {}
        for prior, sources in _SAMPLED:
            subjects = (
                [{"seed": seed} for seed in seeds] if sources[0].startswith("seed.") else [{"state": packet}]
            )
            values = [value for subject in subjects if (value := read(sources, subject)) is not None]
            arrays = found.setdefault(prior, [])
            arrays += [np.asarray(value, dtype=np.float64).reshape(-1) for value in values]
        return {prior: _joined(arrays) for prior, arrays in found.items() if arrays}

    def forget(self, run_id: str) -> None:
        """Drop what is cached for a run that ended."""
        self._runs.forget(run_id)

    def _build(self, run: RunState, packet: SystemStatePacket, tables: Tables) -> StepGraph:
        blueprint, problems = _host_of(run, packet, tables)
        seeds = _seeds_of(run, packet)
        repeated = 0 if run.seeds else len(packet.seed_states or ()) - len(seeds)
        if repeated:
            problems.append(f"state.seed_states: {repeated} seeds repeat the id of another; the last one counts")
        kernels = tuple(tables.kernels.values())
        cached = self._runs.take(run.run_id)
        template = self._template(cached, blueprint, seeds, kernels, packet)
        self._read_objects(cached, template, seeds, kernels, tables)
        state, unused = state_subject(packet, blueprint, template.counts)
        sheet = tables.sheets.get(blueprint.blueprint_id) if blueprint is not None else None
        values = step_values(state, run_subject(run, self._deadline_ms), template.objects.moving)
        program = template.program(tuple([value is not None for value in values]), sheet)
        buffers = template.acquire()
        counts = _write(template, program, buffers, values, run.norms)
        self._runs.charge(cached)
        silent = silent_families(
            seeds_exported=run.seeds_timestamp_ns > 0 or packet.seed_states is not None,
            kernels_known=bool(kernels),
        )
        return StepGraph(
            run_id=run.run_id,
            packet_id=packet.packet_id,
            global_step=packet.global_step,
            topology=template.built.topology,
            x_dict=dict(buffers.x),
            edge_attr_dict=dict(buffers.attributes),
            coverage=_coverage(cached, template, program, counts, silent),
            problems=_bounded([*problems, *template.built.problems, *unused]),
            sampled_edges=template.built.sampled_edges,
            learned_fallbacks=(blueprint is None) + cached.unknown_kernels + template.learned_fallbacks,
        )

    def _template(
        self,
        cached: CachedRun,
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
            built = build_topology(blueprint, seeds, kernels, top_layers=cached.top_layers, **self._limits)
            cached.template = Template(blueprint, built, self._registries)
            cached.structure = structure
            cached.coverage = None
        return cached.template

    def _read_objects(
        self,
        cached: CachedRun,
        template: Template,
        seeds: tuple[SeedState, ...],
        kernels: tuple[Blueprint, ...],
        tables: Tables,
    ) -> None:
        """Read seeds or kernels again where one of them, or what is attached to it, was replaced."""
        attached = [seed.blueprint_id or "" for seed in seeds]
        of_seeds = (seeds, tuple(map(tables.kernels.get, attached)), tuple(map(tables.sheets.get, attached)))
        of_kernels = (kernels, tuple([tables.sheets.get(kernel.blueprint_id) for kernel in kernels]))
        replaced = cached.objects_of is not template
        if of_seeds != cached.seeds_read:
            subjects = [seed_subjects(seed, tables) for seed in seeds]
            cached.seeds_read, cached.of_seeds = of_seeds, read_objects(SEED_FIELDS, subjects, self._registries)
            known = zip(attached, of_seeds[1], strict=True)
            cached.unknown_kernels = sum(bool(name) and kernel is None for name, kernel in known)
            replaced = True
        if of_kernels != cached.kernels_read:
            subjects = [kernel_subjects(kernel, tables, self._registries) for kernel in kernels]
            cached.kernels_read = of_kernels
            cached.of_kernels = read_objects(KERNEL_FIELDS, subjects, self._registries)
            replaced = True
        if replaced:
            cached.objects_of = template
            template.objects.take(seeds, cached.of_seeds, cached.of_kernels)


def _joined(arrays: list[SampleArray]) -> SampleArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _seeds_of(run: RunState, packet: SystemStatePacket) -> tuple[SeedState, ...]:
    """Return the seeds that Kasmina exported, else the packet's; of several with one id the last."""
    seeds = run.seeds or {seed.seed_id: seed for seed in packet.seed_states or ()}
    return tuple(seeds.values())


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


def _bounded(problems: list[str]) -> tuple[str, ...]:
    """Return ``problems`` within the bounds, saying how many more there are."""
    if len(problems) > MAX_PROBLEMS:
        shown = MAX_PROBLEMS - 1
        problems = [*problems[:shown], f"and {len(problems) - shown} more"]
    return tuple(
        text if len(text) <= MAX_PROBLEM_LENGTH else f"{text[: MAX_PROBLEM_LENGTH - 1]}…" for text in problems
    )


def _write(
    template: Template, program: Program, buffers: Buffers, values: list[Any], norms: Mapping[str, EwmaNorm]
) -> list[int] | None:
    """Write a step into ``buffers``; return how many nodes or edges have each part (None: all of them)."""
    changed: set[Target] = set()
    if buffers.program is not program:
        buffers.program, buffers.uniform = program, {target: {} for target in BY_TARGET}
        changed |= program.settle(buffers.array)
    if buffers.objects != template.objects.number:
        buffers.objects = template.objects.number
        changed |= template.objects.write(buffers.array)
    written, counts = program.write(values, norms, buffers.array, buffers.uniform)
    template.spread(buffers, changed | written)
    return counts


def _coverage(
    cached: CachedRun, template: Template, program: Program, counts: list[int] | None, silent: frozenset[str]
) -> Coverage:
    """Summarise what was there; most steps bring what the step before them brought."""
    counted = (program, template.objects.counts, counts, silent)
    if cached.coverage is None or counted != cached.counted:
        tallies = template.tallies + template.objects.tallies() + program.tallies(counts)
        cached.counted, cached.coverage = counted, summarise(tallies, template.withheld | silent)
    return cached.coverage


def _rank_layers(cached: CachedRun, blueprint: Blueprint | None, packet: SystemStatePacket) -> None:
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
    pairs = {
        (entry.prior, tuple(source for source in entry.sources if source.startswith(("state.", "seed.")))): None
        for family in FAMILIES
        for entry in family.fields
        if entry.transform is Transform.EWMA and not entry.sources[0].startswith("run.")
    }
    return tuple(pairs)


#: (prior, sources) of every moving statistic, each once. A published constant is no sample.
_SAMPLED = _sampled()
