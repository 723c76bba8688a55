"""Template: everything of a run's graph that outlives a step, and the buffers steps are written into (design §6).

A buffer holds the static slots already; a step overwrites every other slot whose value is not the one it wants, so
nothing is copied and nothing of an older step can show through. A buffer is used again once nobody holds its
arrays any more, tensors made from them included.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from schemas.urabrask import BlueprintSafetySheet
from schemas.urza import Blueprint, BlueprintGraph
from tamiyo_stream.graph.blocks import Block, Field, Target, states
from tamiyo_stream.graph.coverage import Tally, empty_tally, tallies_of, withheld_families
from tamiyo_stream.graph.families import FAMILIES
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.layout import Layout, pick
from tamiyo_stream.graph.objects import Objects
from tamiyo_stream.graph.program import Available, Program
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import RELATIONS, EdgeType
from tamiyo_stream.graph.sources import Subjects, read
from tamiyo_stream.graph.structures import FloatArray
from tamiyo_stream.graph.topology import BuiltTopology, activation_layers
from tamiyo_stream.graph.writers import Uniform, writers_of

_Key = TypeVar("_Key")
#: Buffers kept per run: one being written, the rest waiting in a batch or on the device.
MAX_BUFFERS = 4
#: Programs kept per structure: choices of sources between which a run goes to and fro.
MAX_PROGRAMS = 8
#: A layer that says it has no activation is known, not unknown.
_DECLARED_NONE = "none"
#: References to an idle buffer's array: the buffer's dict, the loop variable, and getrefcount's own argument.
_IDLE_REFERENCES = 3


@dataclass(slots=True, eq=False)
class Buffers:
    """Arrays of one step: ``x`` by node type, ``attributes`` by edge type.

    ``unions``: rows of the forward relations of which not all are forward edges (see ``Wiring``). ``program`` and
    ``objects`` say what the arrays hold besides the static slots: the program that wrote them last, and the number
    of the reading of seeds and kernels. ``uniform``: the slots that hold one value in all rows.
    """

    x: dict[str, FloatArray]
    attributes: dict[EdgeType, FloatArray]
    unions: dict[EdgeType, FloatArray]
    program: Program | None = None
    objects: int = 0
    uniform: dict[Target, Uniform] = field(default_factory=dict)

    def idle(self) -> bool:
        """Return whether no one else holds any of the arrays."""
        for array in self.x.values():
            if sys.getrefcount(array) > _IDLE_REFERENCES:
                return False
        return all(sys.getrefcount(array) <= _IDLE_REFERENCES for array in self.attributes.values())

    def array(self, target: Target) -> FloatArray:
        """Return the array that the fields of ``target`` are written into."""
        if isinstance(target, str):
            return self.x[target]
        return self.unions[target] if target in self.unions else self.attributes[target]

    def copy(self) -> Buffers:
        """Return buffers of their own with the same contents."""
        return Buffers(_copies(self.x), _copies(self.attributes), _copies(self.unions))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = (self.x, self.attributes, self.unions)
        return sum(array.nbytes for part in parts for array in part.values())


def _copies(arrays: Mapping[_Key, FloatArray]) -> dict[_Key, FloatArray]:
    return {key: array.copy() for key, array in arrays.items()}


class Template:
    """One structure of one run.

    ``learned_fallbacks``: activation nodes whose function nobody names, embedded by the layer that feeds them.
    """

    def __init__(self, blueprint: Blueprint | None, built: BuiltTopology, registries: Registries) -> None:
        self.blueprint = blueprint
        self.built = built
        self.withheld = withheld_families(blueprint)
        self.counts = _column_counts(blueprint)
        rows: dict[Target, int] = {edge_type: len(wiring) for edge_type, wiring in built.wirings.items()}
        rows.update(built.topology.node_counts)
        self._layout = Layout(rows, built.wirings, _deepest(blueprint))
        self.objects = Objects(self._layout)
        self._registries = registries
        self._pool: list[Buffers] = []
        self._programs: OrderedDict[tuple[Available, int], tuple[Program, BlueprintSafetySheet | None]] = (
            OrderedDict()
        )
        activations = _activation_subjects(blueprint, built)
        self.learned_fallbacks = sum(not name for name in read(_ACTIVATION_TYPES, activations) or ())
        self._static, tallies = self._fill_static(activations)
        self._static_bytes = self._static.nbytes
        self._edge_bytes = _edge_bytes(built)
        self.tallies: list[Tally] = [
            *tallies,
            *(empty_tally(family.target) for family in FAMILIES if not rows[family.target]),
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept: edges, static slots and buffers."""
        return self._edge_bytes + self._static_bytes * (1 + len(self._pool))

    def acquire(self) -> Buffers:
        """Return buffers that no earlier step's graph uses, static slots filled."""
        for buffers in self._pool:
            if buffers.idle():
                return buffers
        fresh = self._static.copy()
        if len(self._pool) < MAX_BUFFERS:
            self._pool.append(fresh)
        return fresh

    def program(self, available: Available, sheet: BlueprintSafetySheet | None) -> Program:
        """Return the program for steps that bring ``available`` sources while ``sheet`` is the host's."""
        key = available, id(sheet)  # the sheet is kept beside the program, so its id is not given away
        known = self._programs.get(key)
        if known is None:
            subjects = {"blueprint": self.blueprint, "sheet": sheet}
            known = self._programs[key] = Program(self._layout, available, subjects, self._registries), sheet
            while len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return known[0]

    def spread(self, buffers: Buffers, changed: Iterable[Target]) -> None:
        """Bring the rows of the ``changed`` relations to their reverse, and from unions to the forward edges."""
        for target in changed:
            if isinstance(target, str):
                continue
            wiring, rows = self.built.wirings[target], buffers.array(target)
            if wiring.forward_order is not None:
                np.take(rows, wiring.forward_order, axis=0, out=buffers.attributes[target], mode="clip")
            reverse = buffers.attributes[_REVERSE[target]]
            np.take(rows, wiring.reverse_order, axis=0, out=reverse, mode="clip")

    def _fill_static(self, activations: Subjects) -> tuple[Buffers, list[Tally]]:
        buffers = _zeros(self.built)
        rows = self._layout.rows
        block = Block(
            self._layout.part(family.target, entry)
            for family in FAMILIES
            if rows[family.target]
            for entry in family.static
        )
        subjects: Subjects = {"blueprint": self.blueprint}
        for part, where in zip(block.parts, block.slices, strict=True):
            value = read(part.field.sources, activations if part.target == "activation" else subjects)
            if value is not None:
                origin = None if isinstance(part.target, str) else self.built.wirings[part.target].origin
                block.values[where] = pick(_as_column(value, part.field, self._registries), origin)
        present = block.encode({})
        counts = block.counts(present)
        for writer in writers_of(block, rows):
            writer.write(buffers.array(writer.target), block, present, states(block, counts), {})
        self.spread(buffers, self.built.wirings)
        return buffers, tallies_of(block, counts)


def _edge_bytes(built: BuiltTopology) -> int:
    edges = built.topology.edges.values()
    wirings = built.wirings.values()
    return sum(each.source.nbytes + each.target.nbytes + each.indptr.nbytes for each in edges) + sum(
        each.origin.nbytes + each.reverse_order.nbytes for each in wirings
    )


_REVERSE = {relation.edge_type: relation.reverse_type for relation in RELATIONS}
_ACTIVATION_TYPES = ("blueprint.graph.activations.type",)


def _zeros(built: BuiltTopology) -> Buffers:
    edges = built.topology.edges
    widths = {key: relation.width for relation in RELATIONS for key in (relation.edge_type, relation.reverse_type)}
    return Buffers(
        {
            node_type: np.zeros((count, NODES[node_type].raw_width), dtype=np.float32)
            for node_type, count in built.topology.node_counts.items()
        },
        {key: np.zeros((len(edges[key]), widths[key]), dtype=np.float32) for key in edges},
        {
            key: np.zeros((len(wiring), widths[key]), dtype=np.float32)
            for key, wiring in built.wirings.items()
            if wiring.forward_order is not None
        },
    )


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
        graph.layers.type[feeds.source[start]] if not name and stop > start else ""
        for name, start, stop in zip(names, feeds.indptr[:-1].tolist(), feeds.indptr[1:].tolist(), strict=True)
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
