"""Topology: from a blueprint, the seeds and the kernels to nodes and destination-sorted edges (design §6).

Built once per structure and reused every step. What a publisher got wrong never stops a step: edges that point
outside the blueprint's nodes are dropped, repeated edges count once (the first one's attributes stay), and both
are named in ``problems``. An absent ``connects`` is a chain in layer order (``domain.md`` §2.13). Where a
blueprint lists no activations, each layer gets one of its own: it feeds it, and it influences the layers behind
(requirements ``000``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.kasmina import SeedState
from schemas.urza import Adjacency, Blueprint, BlueprintGraph, EdgeList
from tamiyo_stream.graph.relations import EDGE_TYPES, RELATIONS, EdgeType
from tamiyo_stream.graph.seed_edges import Links, allowed_links, implied, monitor_links
from tamiyo_stream.graph.structures import IndexArray, RelationEdges, Topology

#: Node id of the one context node.
CONTEXT_ID = "run"
_NO_EDGES: IndexArray = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """How the attribute rows of a forward relation and its reverse are filled.

    ``source``, ``target``: [E] node positions in forward order; ``origin``: [E] position of the edge in the list
    it came from (the blueprint's edge list; for monitors all seeds' ``monitored_layers`` one after the other), -1
    where none; ``reverse_order``: [E] forward row of each row of the reverse.
    """

    source: IndexArray
    target: IndexArray
    origin: IndexArray
    reverse_order: IndexArray
    max_fan_out: int

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class BuiltTopology:
    """A topology, the wiring of every forward relation, and what was wrong with the input."""

    topology: Topology
    wirings: Mapping[EdgeType, Wiring] = field(repr=False)
    problems: tuple[str, ...] = ()


def build_topology(
    blueprint: Blueprint | None,
    seeds: Sequence[SeedState],
    kernels: Sequence[Blueprint],
    *,
    top_layers: Sequence[int] = (),
) -> BuiltTopology:
    """Build all nodes and edges.

    Args:
        blueprint: the host model; None or without a graph: only seeds, kernels and the context.
        seeds: seeds of the run in export order.
        kernels: candidate kernels, one ``blueprint`` node each.
        top_layers: positions of the layers with the largest loss contribution, watched by seeds that nobody binds;
            empty before any is known: the deepest layers stand in (``seed_edges``).
    """
    graph = blueprint.graph if blueprint is not None else None
    problems: list[str] = []
    node_ids = _node_ids(graph, seeds, kernels)
    counts = {node_type: len(ids) for node_type, ids in node_ids.items()}
    links = _host_links(graph, counts)
    monitors, dropped = monitor_links(graph, seeds, top_layers)
    if dropped:
        problems.append(f"monitors: {dropped} layers are not in the blueprint and were dropped")
    links["seed", "monitors", "layer"] = monitors
    links["seed", "allowed", "parameter"] = allowed_links(graph, seeds)
    links["parameter", "targets", "blueprint"] = _target_links(node_ids["parameter"], kernels)
    for target in ("layer", "seed"):
        every = np.arange(counts[target])
        links["context", "conditions", target] = Links(np.zeros_like(every), every)
    edges: dict[EdgeType, RelationEdges] = {}
    wirings: dict[EdgeType, Wiring] = {}
    for relation in RELATIONS:
        kept = _valid(relation.name, links[relation.edge_type], relation.edge_type, counts, problems)
        wiring, forward, reverse = _wire(kept, counts[relation.source], counts[relation.target])
        wirings[relation.edge_type] = wiring
        edges[relation.edge_type], edges[relation.reverse_type] = forward, reverse
    ordered = {edge_type: edges[edge_type] for edge_type in EDGE_TYPES}
    topology = Topology(_structure_hash(counts, ordered), node_ids, ordered)
    return BuiltTopology(topology, wirings, tuple(problems))


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


def _target_links(parameter_ids: tuple[str, ...], kernels: Sequence[Blueprint]) -> Links:
    """Parameters that a kernel names; all of them, within the bound, where it names none of this host's."""
    positions = {name: position for position, name in enumerate(parameter_ids)}
    source: list[int] = []
    target: list[int] = []
    for index, kernel in enumerate(kernels):
        named = kernel.descriptor.allowed_parameters if kernel.descriptor is not None else {}
        chosen = [positions[name] for name in named if name in positions] or implied(
            len(parameter_ids), len(kernels)
        )
        source.extend(chosen)
        target.extend([index] * len(chosen))
    return Links(np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64))


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


def _wire(links: Links, sources: int, targets: int) -> tuple[Wiring, RelationEdges, RelationEdges]:
    links = links.take(np.argsort(links.target, kind="stable"))
    source, target = links.source, links.target
    reverse_order = np.argsort(source, kind="stable")
    fan_out = np.bincount(source, minlength=sources)
    forward = RelationEdges(source, target, _pointers(np.bincount(target, minlength=targets)))
    reverse = RelationEdges(target[reverse_order], source[reverse_order], _pointers(fan_out))
    wiring = Wiring(source, target, links.origins, reverse_order, int(fan_out.max(initial=0)))
    return wiring, forward, reverse


def _pointers(degrees: IndexArray) -> IndexArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(degrees, dtype=np.int64)])


def _structure_hash(counts: Mapping[str, int], edges: Mapping[EdgeType, RelationEdges]) -> str:
    digest = hashlib.sha256(repr(sorted(counts.items())).encode())
    for edge_type in EDGE_TYPES:
        relation = edges[edge_type]
        digest.update(f"{edge_type}{len(relation)}".encode())
        digest.update(relation.source.tobytes())
        digest.update(relation.target.tobytes())
    return digest.hexdigest()
