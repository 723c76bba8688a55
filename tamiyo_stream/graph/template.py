"""Template: everything of a run's graph that outlives a step, and the buffers steps are written into (design §6).

A buffer holds the static slots already; a step overwrites every other slot, so nothing is copied and nothing of an
older step can show through. A buffer is used again once nobody holds its arrays any more, tensors made from them
included.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.urza import Blueprint, BlueprintGraph
from tamiyo_stream.graph.blocks import Field
from tamiyo_stream.graph.coverage import Tally, withheld_families
from tamiyo_stream.graph.families import EDGE_FAMILIES, NODE_FAMILIES, Family
from tamiyo_stream.graph.features import NODES, Total
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import EdgeType
from tamiyo_stream.graph.rows import pick
from tamiyo_stream.graph.sources import Subjects, read
from tamiyo_stream.graph.structures import FloatArray, IndexArray
from tamiyo_stream.graph.topology import BuiltTopology, activation_layers

#: Buffers kept per run: one being written, the rest waiting in a batch or on the device.
MAX_BUFFERS = 4
#: A layer that says it has no activation is known, not unknown.
_DECLARED_NONE = "none"
#: References to an idle buffer's array: the buffer's dict, the loop variable, and getrefcount's own argument.
_IDLE_REFERENCES = 3


@dataclass(slots=True, eq=False)
class Buffers:
    """Arrays of one step: ``x`` by node type, ``attributes`` by edge type.

    ``objects``: number of the reading of seeds and kernels whose slots the arrays hold; 0 = none yet.
    """

    x: dict[str, FloatArray]
    attributes: dict[EdgeType, FloatArray]
    objects: int = 0

    def idle(self) -> bool:
        """Return whether no one else holds any of the arrays."""
        for array in self.x.values():
            if sys.getrefcount(array) > _IDLE_REFERENCES:
                return False
        return all(sys.getrefcount(array) <= _IDLE_REFERENCES for array in self.attributes.values())


class Template:
    """One structure of one run."""

    def __init__(self, blueprint: Blueprint | None, built: BuiltTopology, registries: Registries) -> None:
        self.blueprint = blueprint
        self.built = built
        self.depth = _deepest(blueprint)
        self.withheld = withheld_families(blueprint)
        self.counts = _column_counts(blueprint)
        self.tallies: list[Tally] = []
        self._static = self._fill_static(registries)
        self._pool: list[Buffers] = []

    def acquire(self) -> Buffers:
        """Return buffers that no earlier step's graph uses, static slots filled."""
        for buffers in self._pool:
            if buffers.idle():
                return buffers
        fresh = Buffers(
            {node_type: array.copy() for node_type, array in self._static.x.items()},
            {edge_type: array.copy() for edge_type, array in self._static.attributes.items()},
        )
        if len(self._pool) < MAX_BUFFERS:
            self._pool.append(fresh)
        return fresh

    def _fill_static(self, registries: Registries) -> Buffers:
        topology = self.built.topology
        x = {
            node_type: np.zeros((len(ids), NODES[node_type].raw_width), dtype=np.float32)
            for node_type, ids in topology.node_ids.items()
        }
        attributes: dict[EdgeType, FloatArray] = {}
        subjects: dict[str, Any] = {"blueprint": self.blueprint}
        for node_type, family in NODE_FAMILIES.items():
            own = _activation_subjects(self.blueprint, self.built) if node_type == "activation" else subjects
            self._write_static(family, x[node_type], own, registries)
        for relation, family in EDGE_FAMILIES:
            wiring = self.built.wirings[relation.edge_type]
            forward = np.zeros((len(wiring), relation.width), dtype=np.float32)
            self._write_static(family, forward, subjects, registries, wiring.origin)
            attributes[relation.edge_type] = forward
            attributes[relation.reverse_type] = forward[wiring.reverse_order]
        return Buffers(x, attributes)

    def _write_static(
        self,
        family: Family,
        target: FloatArray,
        subjects: Subjects,
        registries: Registries,
        origin: IndexArray | None = None,
    ) -> None:
        block = family.static
        if not block.fields:
            return
        raw = block.empty(len(target))
        for entry, rows in zip(block.fields, block.slices, strict=True):
            value = read(entry.sources, subjects)
            if value is not None:
                raw[rows] = pick(_as_column(value, entry, registries), origin)
        encoded = block.encode(raw, {}, {Total.DEPTH: self.depth})
        block.write(target, encoded)
        self.tallies.append(Tally(family.name, block.keys, block.mandatory, block.tally(encoded), len(target)))


def _as_column(value: Any, entry: Field, registries: Registries) -> Any:
    if isinstance(value, list):
        empty = _DECLARED_NONE if entry.key == "layer.activation_type" else ""
        return np.asarray([registries.index(entry.vocabulary, key or empty) for key in value], dtype=np.float32)
    return value if isinstance(value, np.ndarray) else float(value)


def _activation_subjects(blueprint: Blueprint | None, built: BuiltTopology) -> Subjects:
    """Subjects of the activation nodes, whose ``layers`` are those that feed them.

    A node whose blueprint names its function has no stand-in: the feeding layer's type is empty for it.
    """
    graph = blueprint.graph if blueprint is not None else None
    if graph is None:
        return {}
    activations: Mapping[str, Any]
    if graph.activations is not None:
        names = graph.activations.type
        activations = {"type": names, "computational_cost": graph.activations.computational_cost}
    else:
        names = _derived_types(graph)
        activations = {"type": names}
    feeds = built.topology.edges["layer", "feeds", "activation"]
    feeding = [
        graph.layers.type[feeds.source[start]] if stop > start and not name else ""
        for name, start, stop in zip(names, feeds.indptr[:-1], feeds.indptr[1:], strict=True)
    ]
    return {"blueprint": {"graph": {"activations": activations, "layers": {"type": feeding}}}}


def _derived_types(graph: BlueprintGraph) -> list[str]:
    names = graph.layers.activation_type
    return [names[position] if names is not None else "" for position in activation_layers(graph)]


def _deepest(blueprint: Blueprint | None) -> float:
    """Depth of the host's deepest layer, NaN where unknown."""
    depth = blueprint.graph.layers.depth if blueprint is not None and blueprint.graph is not None else None
    return float(depth.max()) if depth is not None and len(depth) else float("nan")


def _column_counts(blueprint: Blueprint | None) -> dict[str, int | None]:
    """Elements that each of a packet's column groups must have; None: there is nothing to align it to."""
    graph = blueprint.graph if blueprint is not None else None
    if graph is None:
        return dict.fromkeys(("layers", "activations", "parameters", "edges"))
    connects = graph.adjacency.connects if graph.adjacency is not None else None
    return {
        "layers": len(graph.layers.layer_id),
        "activations": len(graph.activations.activation_id) if graph.activations is not None else None,
        "parameters": len(graph.parameters.parameter_id) if graph.parameters is not None else None,
        "edges": len(connects.source) if connects is not None else max(len(graph.layers.layer_id) - 1, 0),
    }
