"""The graph as the tables define it, one value at a time: slow, plain, and independent of the builder's blocks."""

from __future__ import annotations

import math

import numpy as np

from tamiyo_stream.graph.features import NODES, Kind, Total, Transform
from tamiyo_stream.graph.registries import CAPACITIES
from tamiyo_stream.graph.sources import kernel_subjects, run_subject, seed_subjects
from tamiyo_stream.runs.norms import Z_LIMIT, moments

F = np.float32
NODE_GROUPS = ("layers", "activations", "parameters")


class RowByRow:
    """Expected rows of one step. ``graph``: the built graph, of which only the topology is read."""

    def __init__(self, graph, run, packet, tables, registries, deadline_ms=45.0):
        self.topology, self.norms, self.registries, self.tables = graph.topology, run.norms, registries, tables
        host = tables.hosts.get(packet.blueprint_id or run.blueprint_id)
        self.structure = host.graph if host is not None else None
        self.host = host if self.structure is not None else None
        self.seeds = list(run.seeds.values()) or list(packet.seed_states or ())
        self.kernels = list(tables.kernels.values())
        state = {name: getattr(packet, name) for name in ("training_loss", "training_metrics", "hardware_context")}
        state |= {name: self._fitting(packet, name) for name in (*NODE_GROUPS, "edges")}
        self.shared = {
            "state": state,
            "blueprint": self.host,
            "sheet": tables.sheets.get(self.host.blueprint_id) if self.host is not None else None,
            "run": run_subject(run, deadline_ms),
        }

    def x(self, node_type):
        """[N, raw width] of a node type."""
        schema = NODES[node_type]
        rows = np.zeros((self.topology.node_counts[node_type], schema.raw_width), F)
        subjects = [self._subjects(node_type, index) for index in range(len(rows))]
        self._write(rows, schema.channels, schema, lambda source, row: self._at(source, subjects[row], row))
        return rows

    def edge_attr(self, relation):
        """[E, width] of a forward relation."""
        edges = self.topology.edges[relation.edge_type]
        rows = np.zeros((len(edges), relation.width), F)
        ends = list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
        fan_out = max(np.bincount(edges.source).tolist(), default=0)
        self._write(
            rows, relation.attributes, relation, lambda source, row: self._on_edge(source, relation, *ends[row]),
            fan_out=fan_out,
        )  # fmt: skip
        return rows

    def _write(self, rows, declared, layout, value_of, fan_out=math.nan):
        masks = {}
        for entry in declared:
            kind = getattr(entry, "kind", Kind.MULTI_HOT if entry.labels else Kind.NUMERIC)
            default = getattr(entry, "default", 0.0)
            raw = [self._raw(entry, kind, value_of, row) for row in range(len(rows))]
            whole = self._whole(entry, raw, fan_out)
            for row, value in enumerate(raw):
                encoded = None if value is None else self._encode(entry, kind, value, whole)
                slot, mask = layout.slots[entry.name].start, layout.mask_slots.get(entry.name)
                values = [default] * len(entry.labels or "x") if encoded is None else encoded
                rows[row, slot : slot + len(values)] = values
                if mask is not None:
                    masks[row, mask] = masks.get((row, mask), True) and encoded is not None
        for (row, mask), present in masks.items():
            rows[row, mask] = float(present)

    def _raw(self, entry, kind, value_of, row):
        """The value of one row as finite float32 (multi-hot: a list), None where missing."""
        for source in (entry.source, entry.fallback or None):
            value = None if source is None else value_of(source, row)
            if value is None:
                continue
            value, by_element = value
            if kind is Kind.MULTI_HOT:
                return [F(label in value) for label in entry.labels]
            if kind is Kind.CATEGORY and isinstance(value, str):
                value = self.registries.index(entry.vocabulary, value)
            number = F(bool(value)) if kind is Kind.FLAG else F(value)
            if np.isfinite(number):
                return number
            if not by_element:
                return None
        return None

    def _whole(self, entry, raw, fan_out):
        magnitudes = [abs(value) for value in raw if value is not None and not isinstance(value, list)]
        if entry.total is Total.SUM:
            return float(np.sum(np.asarray(magnitudes, np.float64)))
        if entry.total is Total.MAX:
            return float(max(magnitudes, default=0.0))
        if entry.total is Total.FAN_OUT:
            return fan_out
        if entry.total is Total.DEPTH:
            depth = self.structure.layers.depth if self.structure is not None else None
            return float(depth.max()) if depth is not None and len(depth) else math.nan
        return entry.total

    def _encode(self, entry, kind, value, whole):
        if kind is Kind.MULTI_HOT:
            return value
        if kind is Kind.CATEGORY:
            return [value] if 1 <= value < CAPACITIES[entry.vocabulary] else None
        low, high = (0.0, 1.0) if entry.transform is Transform.CLAMP01 else (-Z_LIMIT, Z_LIMIT)
        if entry.transform in {Transform.EWMA, Transform.LOG1P_Z, Transform.Z}:
            norms = self.norms if entry.transform is Transform.EWMA else {}
            mean, std = moments(norms, entry.prior)
            if entry.transform is Transform.LOG1P_Z:
                value = np.log1p(max(value, F(0)))
            value = (value - F(mean)) * F(1.0 / std)
        elif entry.transform in {Transform.RATIO, Transform.CLAMP01} and whole != 1.0:
            if math.isnan(whole):
                return None
            value = F(0) if whole == 0 else value / F(whole)
        return [min(max(value, F(low)), F(high))]

    def _subjects(self, node_type, index):
        if node_type == "seed":
            return seed_subjects(self.seeds[index], self.tables)
        if node_type == "blueprint":
            return kernel_subjects(self.kernels[index], self.tables, self.registries)
        if node_type == "activation" and self.structure is not None:
            return {**self.shared, "blueprint": {"graph": self._activation_structure(index)}}
        return self.shared

    def _activation_structure(self, index):
        own, layers = self.structure.activations, self.structure.layers
        if own is not None:
            columns, name = own, own.type[index]
        else:
            names = layers.activation_type
            owners = [i for i in range(len(layers.layer_id)) if names is None or names[i]]
            name = "" if names is None else names[owners[index]]
            columns = {"type": [name] * len(owners)}
        feeding = self.topology.edges["layer", "feeds", "activation"]
        feeders = feeding.source[feeding.target == index].tolist()
        kind = layers.type[feeders[0]] if feeders and not name else ""
        return {"activations": columns, "layers": {"type": [kind] * (index + 1)}}

    def _at(self, source, subjects, row):
        """Value of a node and whether it is an element of a column; None = missing."""
        value = _walk(source, subjects)
        if value is None or isinstance(value, str):
            return None if value is None else (value, False)
        if isinstance(value, np.ndarray) or (isinstance(value, list) and source.startswith("blueprint.")):
            element = value[row]
            if source == "blueprint.graph.layers.activation_type":
                element = element or "none"
            return element, True
        return value, False

    def _on_edge(self, source, relation, start, end):
        root, *path = source.split(".")
        if root in {"seed", "kernel", "kernel_sheet"} or (root == "run" and relation.target == "blueprint"):
            return self._of_object(source, relation, start, end)
        value = _walk(source, self.shared)
        if value is None or not isinstance(value, np.ndarray):
            return None if value is None else (value, False)
        if path[0] == "edges" or "adjacency" in path:
            position = self._listed(relation, start, end)
            return None if position is None else (value[position], True)
        group = path[0] if root == "state" else path[1]
        return value[start if group == f"{relation.source}s" else end], True

    def _of_object(self, source, relation, start, end):
        if relation.target == "blueprint":
            value = _walk(source, self._subjects("blueprint", end))
            return None if value is None else (value, False)
        if "monitored_layers" in source:
            name = self.topology.node_ids["layer"][end]
            entries = [e for e in self.seeds[start].monitored_layers or () if e.layer_id == name]
            value = getattr(entries[0], source.rsplit(".", 1)[1]) if entries else None
        else:
            value = _walk(source, self._subjects("seed", start))
        return None if value is None else (value, False)

    def _listed(self, relation, start, end):
        adjacency = self.structure.adjacency
        listed = getattr(adjacency, relation.name) if adjacency is not None else None
        if listed is None:
            return start if relation.name == "connects" else None
        return list(zip(listed.source.tolist(), listed.target.tolist(), strict=True)).index((start, end))

    def _fitting(self, packet, group):
        columns = getattr(packet, group)
        if columns is None or self.host is None:
            return None
        if packet.blueprint_version not in (None, self.host.blueprint_version):
            return None
        found = [getattr(columns, name) for name in columns.__struct_fields__]
        lengths = {len(column) for column in found if column is not None}
        return columns if lengths == {self._expected(group)} else None

    def _expected(self, group):
        structure = self.structure
        if group == "edges":
            connects = structure.adjacency.connects if structure.adjacency is not None else None
            return len(connects.source) if connects is not None else max(len(structure.layers.layer_id) - 1, 0)
        section = getattr(structure, group)
        return None if section is None else len(getattr(section, f"{group[:-1]}_id"))


def _walk(source, value):
    for name in source.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        if value is None:
            return None
    return value
