"""Topology: from a blueprint, the seeds and the kernels to nodes and destination-sorted edges (design §6).

Built once per structure and reused every step. What a publisher got wrong never stops a step: edges that point
outside the blueprint's nodes are dropped, repeated edges count once (the first one's attributes stay), and both
are named in ``problems``. An absent ``connects`` is a chain in layer order (``domain.md`` §2.13). Where a
blueprint lists no activations, each layer gets one of its own: it feeds it, and it influences the layers behind
(requirements ``000``). Above the limits every node keeps its strongest in-edges (``caps``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.kasmina import SeedState
from schemas.urza import Adjacency, Blueprint, BlueprintGraph, EdgeList
from tamiyo_stream.graph.caps import MAX_EDGES, MAX_NODES
from tamiyo_stream.graph.relations import EDGE_TYPES, RELATIONS, EdgeType, Relation
from tamiyo_stream.graph.seed_edges import (
    MAX_IMPLIED_EDGES,
    Links,
    allowed_links,
    allowed_problems,
    implied,
    monitor_links,
)
from tamiyo_stream.graph.structures import IndexArray, RelationEdges, Topology
from tamiyo_stream.graph.wiring import WiredRelation, Wiring, wire, wire_capped

#: Node id of the one context node.
CONTEXT_ID = "run"
_NO_EDGES: IndexArray = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class BuiltTopology:
    """A topology, the wiring of every forward relation, and what was wrong with the input.

    ``sampled_edges``: edges of both directions that the caps left out.
    """

    topology: Topology
    wirings: Mapping[EdgeType, Wiring] = field(repr=False)
    problems: tuple[str, ...] = ()
    sampled_edges: int = 0


def build_topology(
    blueprint: Blueprint | None,
    seeds: Sequence[SeedState],
    kernels: Sequence[Blueprint],
    *,
    top_layers: Sequence[int] = (),
    max_nodes: int = MAX_NODES,
    max_edges: int = MAX_EDGES,
) -> BuiltTopology:
    """Build all nodes and edges.

    Args:
        blueprint: the host model; None or without a graph: only seeds, kernels and the context.
        seeds: seeds of the run in export order.
        kernels: candidate kernels, one ``blueprint`` node each.
        top_layers: positions of the layers with the largest loss contribution, watched by seeds that nobody binds;
            empty before any is known: the deepest layers stand in (``seed_edges``).
        max_nodes: nodes above which in-degrees are capped to the first of ``NEIGHBOUR_CAPS``.
        max_edges: as ``max_nodes``, edges of the forward relations.
    """
    graph = blueprint.graph if blueprint is not None else None
    node_ids = _node_ids(graph, seeds, kernels)
    counts = {node_type: len(ids) for node_type, ids in node_ids.items()}
    links, problems = _all_links(graph, seeds, kernels, counts, node_ids["parameter"], top_layers)
    kept = {
        relation: _valid(relation.name, links[relation.edge_type], relation.edge_type, counts, problems)
        for relation in RELATIONS
    }
    too_large = sum(counts.values()) > max_nodes or sum(map(len, kept.values())) > max_edges
    adjacency = graph.adjacency if graph is not None else None
    wired = {
        relation: wire_capped(relation, each, counts, adjacency) if too_large else wire(relation, each, counts)
        for relation, each in kept.items()
    }
    topology = _topology(counts, node_ids, wired)
    return BuiltTopology(
        topology,
        {relation.edge_type: each.wiring for relation, each in wired.items()},
        tuple(problems),
        2 * sum(map(len, kept.values())) - topology.num_edges,
    )


def _all_links(
    graph: BlueprintGraph | None,
    seeds: Sequence[SeedState],
    kernels: Sequence[Blueprint],
    counts: Mapping[str, int],
    parameter_ids: tuple[str, ...],
    top_layers: Sequence[int],
) -> tuple[dict[EdgeType, Links], list[str]]:
    """Links of every relation as upstream gives them, and what of the seeds' and kernels' could not be used."""
    links = _host_links(graph, counts)
    monitors, dropped = monitor_links(graph, seeds, top_layers)
    problems = allowed_problems(graph, seeds)
    if dropped:
        problems.append(f"monitors: {dropped} layers are not in the blueprint and were dropped")
    links["seed", "monitors", "layer"] = monitors
    links["seed", "allowed", "parameter"] = allowed_links(graph, seeds)
    targets, left_out = _target_links(parameter_ids, kernels)
    links["parameter", "targets", "blueprint"] = targets
    if left_out:
        problems.append(
            f"targets: {left_out} of {len(parameter_ids)} parameters were left out for each kernel that names "
            f"none of them, so as not to imply more than {MAX_IMPLIED_EDGES} edges"
        )
    for target in ("layer", "seed"):
        every = np.arange(counts[target])
        links["context", "conditions", target] = Links(np.zeros_like(every), every)
    return links, problems


def _topology(
    counts: Mapping[str, int], node_ids: Mapping[str, tuple[str, ...]], wired: Mapping[Relation, WiredRelation]
) -> Topology:
    edges: dict[EdgeType, RelationEdges] = {}
    ranks: dict[EdgeType, IndexArray] = {}
    for relation, each in wired.items():
        edges[relation.edge_type], edges[relation.reverse_type] = each.forward, each.reverse
        if each.ranks is not None:
            ranks[relation.edge_type], ranks[relation.reverse_type] = each.ranks
    ordered = {edge_type: edges[edge_type] for edge_type in EDGE_TYPES}
    return Topology(_structure_hash(counts, ordered, ranks), node_ids, ordered, ranks)


def has_own_activations(graph: BlueprintGraph) -> bool:
    """Return whether the blueprint lists activations; otherwise they are derived from its layers."""
    return graph.activations is not None


def activation_layers(graph: BlueprintGraph) -> IndexArray:
    """Return the layer position of each derived activation: every layer, except those that say they have none."""
    names = graph.layers.activation_type
    if names is None:
        return np.arange(len(graph.layers.layer_id))
    return np.flatnonzero(np.asarray([bool(name) for name in names], dtype=bool))


def _node_ids(
    graph: BlueprintGraph | None, seeds: Sequence[SeedState], kernels: Sequence[Blueprint]
) -> dict[str, tuple[str, ...]]:
    layers: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    if graph is not None:
        layers = tuple(graph.layers.layer_id)
        if graph.activations is not None:
            activations = tuple(graph.activations.activation_id)
        else:
            activations = tuple(f"{layers[position]}.activation" for position in activation_layers(graph))
        parameters = tuple(graph.parameters.parameter_id) if graph.parameters is not None else ()
    return {
        "layer": layers,
        "seed": tuple(seed.seed_id for seed in seeds),
        "activation": activations,
        "parameter": parameters,
        "blueprint": tuple(kernel.blueprint_id for kernel in kernels),
        "context": (CONTEXT_ID,),
    }


def _host_links(graph: BlueprintGraph | None, counts: Mapping[str, int]) -> dict[EdgeType, Links]:
    adjacency = graph.adjacency if graph is not None and graph.adjacency is not None else Adjacency()
    links = {
        relation.edge_type: _listed(getattr(adjacency, relation.name, None))
        for relation in RELATIONS
        if relation.source not in ("seed", "context") and relation.target != "blueprint"
    }
    if adjacency.connects is None:
        chain = np.arange(max(counts["layer"] - 1, 0))
        links["layer", "connects", "layer"] = Links(chain, chain + 1, chain)
    if graph is not None and not has_own_activations(graph):
        owners = activation_layers(graph)
        links["layer", "feeds", "activation"] = Links(owners, np.arange(len(owners)))
        links["activation", "influences", "layer"] = _behind(
            owners, links["layer", "connects", "layer"], counts["layer"]
        )
    return links


def _listed(edges: EdgeList | None) -> Links:
    if edges is None:
        return Links(_NO_EDGES, _NO_EDGES)
    return Links(edges.source.astype(np.int64), edges.target.astype(np.int64), np.arange(len(edges.source)))


def _behind(owners: IndexArray, connects: Links, layers: int) -> Links:
    """Links from each derived activation to the layers that its own layer connects to."""
    activation_of = np.full(layers, -1, dtype=np.int64)
    activation_of[owners] = np.arange(len(owners))
    valid = (connects.source >= 0) & (connects.source < layers)
    source = activation_of[connects.source[valid]]
    return Links(source[source >= 0], connects.target[valid][source >= 0])


def _target_links(parameter_ids: tuple[str, ...], kernels: Sequence[Blueprint]) -> tuple[Links, int]:
    """Parameters that a kernel names; all of them, within the bound, where it names none of this host's.

    Also return how many parameters the bound left out.
    """
    positions = {name: position for position, name in enumerate(parameter_ids)}
    every = implied(len(parameter_ids), len(kernels))
    left_out = 0
    source: list[int] = []
    target: list[int] = []
    for index, kernel in enumerate(kernels):
        named = kernel.descriptor.allowed_parameters if kernel.descriptor is not None else {}
        chosen: Sequence[int] = [positions[name] for name in named if name in positions]
        if not chosen:
            chosen, left_out = every, len(parameter_ids) - len(every)
        source.extend(chosen)
        target.extend([index] * len(chosen))
    return Links(np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64)), left_out


def _valid(name: str, links: Links, edge_type: EdgeType, counts: Mapping[str, int], problems: list[str]) -> Links:
    """Drop edges that point outside the nodes, and repetitions of an edge; say how many."""
    sources, targets = counts[edge_type[0]], counts[edge_type[2]]
    inside = (links.source >= 0) & (links.source < sources) & (links.target >= 0) & (links.target < targets)
    outside = len(inside) - int(np.count_nonzero(inside))
    if outside:
        problems.append(f"{name}: {outside} edges point outside the blueprint's nodes and were dropped")
        links = links.take(np.flatnonzero(inside))
    _, first = np.unique(links.source * targets + links.target, return_index=True)
    repeated = len(links) - len(first)
    if repeated:
        problems.append(f"{name}: {repeated} edges repeat another and were dropped")
        links = links.take(np.sort(first))
    return links


def _structure_hash(
    counts: Mapping[str, int], edges: Mapping[EdgeType, RelationEdges], ranks: Mapping[EdgeType, IndexArray]
) -> str:
    digest = hashlib.sha256(repr(sorted(counts.items())).encode())
    for edge_type in EDGE_TYPES:
        relation = edges[edge_type]
        digest.update(f"{edge_type}{len(relation)}".encode())
        digest.update(relation.source.tobytes())
        digest.update(relation.target.tobytes())
        if edge_type in ranks:
            digest.update(b"ranks")
            digest.update(ranks[edge_type].tobytes())
    return digest.hexdigest()
