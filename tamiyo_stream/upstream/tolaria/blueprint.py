"""The wire form of a model's structure: a HOST blueprint whose parameter nodes are the optimizer's groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from schemas.codec import canonical_payload
from schemas.enums import BlueprintKind, CompileStatus
from schemas.record import Float32Column, Int32Column, UInt8Column
from schemas.urza import (
    Adjacency,
    Blueprint,
    BlueprintActivations,
    BlueprintDescriptor,
    BlueprintGraph,
    BlueprintLayers,
    BlueprintParameters,
    CompileReport,
    EdgeList,
)
from tamiyo_stream.upstream.tolaria.activation_types import BY_NAME
from tamiyo_stream.upstream.tolaria.optimizer import family_of, group_ids, learning_rate_of, momentum_of
from tamiyo_stream.upstream.tolaria.structure import ModelStructure

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """Scalars by (group, layer): [G, L]. How parameter groups and layers overlap."""

    scalars: FloatArray

    @property
    def of_layer(self) -> FloatArray:
        """Share of each layer's scalars that a group owns."""
        return _divided(self.scalars, self.scalars.sum(axis=0, keepdims=True))

    @property
    def of_group(self) -> FloatArray:
        """Share of each group's scalars that a layer owns."""
        return _divided(self.scalars, self.scalars.sum(axis=1, keepdims=True))


def build_blueprint(
    structure: ModelStructure,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    run_id: str,
    issued_at: int,
    compiled: bool = False,
) -> Blueprint:
    """Return the blueprint of ``model`` under ``optimizer``; ``compiled``: it runs under ``torch.compile``.

    ``blueprint_version`` is the SHA-256 over structure, widths, counts, group ids, optimizer family and compile
    status: equal models have equal versions, learning rates and weights do not matter. ``connects.weight`` is the
    number of distinct ways between two layers; ``configures.weight`` the share of the feeding layers' scalars that
    the group owns; ``modulates.weight`` the share of the group's scalars that the feeding layers own.
    """
    shares = _shares_of(structure, optimizer)
    graph = BlueprintGraph(
        layers=_layers(structure),
        activations=_activations(structure),
        parameters=_parameters(optimizer),
        adjacency=Adjacency(
            connects=EdgeList(
                source=Int32Column.of([edge.source for edge in structure.connects]),
                target=Int32Column.of([edge.target for edge in structure.connects]),
                weight=Float32Column.of([edge.paths for edge in structure.connects]),
                residual=UInt8Column.of([edge.residual for edge in structure.connects]),
            ),
            feeds=_edges(structure.feeds),
            influences=_edges(structure.influences),
            tunes=_edges(zip(*np.nonzero(shares.scalars), strict=True)),
            configures=_reversed(_links(structure, shares.of_layer, mean=True)),
            modulates=_weighted(_links(structure, shares.of_group, mean=False)),
        ),
        source=structure.source,
    )
    blueprint = Blueprint(
        blueprint_id=host_blueprint_id(run_id),
        blueprint_version="-",
        kind=BlueprintKind.HOST,
        issued_at=issued_at,
        run_id=run_id,
        descriptor=BlueprintDescriptor(name=type(model).__name__),
        graph=graph,
        compiled=CompileReport(status=CompileStatus.COMPILED if compiled else CompileStatus.EAGER),
    )
    return msgspec.structs.replace(blueprint, blueprint_version=_version_of(blueprint))


def host_blueprint_id(run_id: str) -> str:
    """Return the blueprint id of the model that ``run_id`` trains."""
    return f"{run_id}-host"


def _layers(structure: ModelStructure) -> BlueprintLayers:
    layers = structure.layers
    return BlueprintLayers(
        layer_id=[layer.layer_id for layer in layers],
        type=[layer.type for layer in layers],
        depth=Int32Column.of([layer.depth for layer in layers]),
        input_channels=Float32Column.of([layer.input_channels for layer in layers]),
        output_channels=Float32Column.of([layer.output_channels for layer in layers]),
        activation_type=[layer.activation_type for layer in layers],
        dropout_rate=Float32Column.of([layer.dropout_rate for layer in layers]),
        parameter_count=Float32Column.of(
            [sum(tensor.numel() for tensor in layer.parameters if tensor.requires_grad) for layer in layers]
        ),
    )


def _activations(structure: ModelStructure) -> BlueprintActivations:
    return BlueprintActivations(
        activation_id=[activation.activation_id for activation in structure.activations],
        type=[activation.type for activation in structure.activations],
        computational_cost=Float32Column.of(
            [BY_NAME[activation.type].cost for activation in structure.activations]
        ),
    )


def _parameters(optimizer: Optimizer) -> BlueprintParameters:
    groups = optimizer.param_groups
    return BlueprintParameters(
        parameter_id=group_ids(optimizer),
        parameter_count=Float32Column.of([sum(tensor.numel() for tensor in group["params"]) for group in groups]),
        learning_rate=Float32Column.of([learning_rate_of(group) for group in groups]),
        momentum=Float32Column.of([momentum_of(group) for group in groups]),
        optimizer_family=[family_of(optimizer)] * len(groups),
    )


def _shares_of(structure: ModelStructure, optimizer: Optimizer) -> _Shares:
    group_of = {
        id(tensor): position for position, group in enumerate(optimizer.param_groups) for tensor in group["params"]
    }
    scalars = np.zeros((len(optimizer.param_groups), len(structure.layers)))
    for position, layer in enumerate(structure.layers):
        for tensor in layer.parameters:
            if id(tensor) in group_of:
                scalars[group_of[id(tensor)], position] += tensor.numel()
    return _Shares(scalars)


def _links(structure: ModelStructure, share: FloatArray, *, mean: bool) -> list[tuple[int, int, float]]:
    """Return (group, activation, weight) where the group owns part of a layer that feeds the activation.

    ``share`` [G, L] is averaged (``mean``) or summed over the feeding layers.
    """
    links: list[tuple[int, int, float]] = []
    for activation in range(len(structure.activations)):
        feeding = [layer for layer, fed in structure.feeds if fed == activation]
        if feeding:
            weights = share[:, feeding].mean(axis=1) if mean else share[:, feeding].sum(axis=1)
            links.extend((int(group), activation, float(weights[group])) for group in np.flatnonzero(weights))
    return links


def _divided(scalars: FloatArray, totals: FloatArray) -> FloatArray:
    shares: FloatArray = scalars / np.maximum(totals, 1.0)
    return shares


def _edges(pairs: Iterable[Sequence[int]]) -> EdgeList:
    ends = [(int(source), int(target)) for source, target in pairs]
    return EdgeList(
        source=Int32Column.of([source for source, _ in ends]),
        target=Int32Column.of([target for _, target in ends]),
    )


def _reversed(links: Iterable[tuple[int, int, float]]) -> EdgeList:
    return _weighted([(target, source, weight) for source, target, weight in links])


def _weighted(links: Sequence[tuple[int, int, float]]) -> EdgeList:
    return EdgeList(
        source=Int32Column.of([source for source, _, _ in links]),
        target=Int32Column.of([target for _, target, _ in links]),
        weight=Float32Column.of([weight for _, _, weight in links]),
    )


def _version_of(blueprint: Blueprint) -> str:
    """Return the SHA-256 (hex) of what lasts in ``blueprint``: not its id, its time, nor the groups' settings."""
    graph = blueprint.graph
    if graph is not None and graph.parameters is not None:
        settings = msgspec.structs.replace(graph.parameters, learning_rate=None, momentum=None)
        graph = msgspec.structs.replace(graph, parameters=settings)
    lasting = msgspec.structs.replace(
        blueprint, blueprint_id="-", blueprint_version="-", issued_at=0, run_id=None, graph=graph
    )
    return hashlib.sha256(canonical_payload(lasting)).hexdigest()
