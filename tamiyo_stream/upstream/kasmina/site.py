"""Where a seed may change a model, and what it may do there: the part of a seed that a run's owner writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from schemas.enums import BLENDING_METHODS
from tamiyo_stream.upstream.tolaria.optimizer import group_ids
from tamiyo_stream.upstream.tolaria.structure import Layer, ModelStructure


class SiteInvalid(ValueError):
    """A site that does not fit the model, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class SeedSite:
    """One seed's place and capabilities.

    Attributes:
        seed_id: unique within the run.
        layer_id: path of the submodule whose output [..., width] the seed may change, as ``blocks.1``.
        monitored_layers: layers it watches, by the ids of the run's blueprint; empty: all within ``layer_id``.
        specialization: what the seed is for, as ``attention``.
        risk_tolerance: 0..1, share of :attr:`Limits.regression_max` that its loss may rise by.
        allowed_blending_methods: of :data:`schemas.enums.BLENDING_METHODS`; the first serves where none is asked.
        allowed_parameters: parameter ids of the run's blueprint that the seed may touch; None: the groups that
            train the site.
        quarantine_only: may graft in quarantine only, which this host does not have: it never germinates.

    Raises:
        SiteInvalid: an empty id, a risk tolerance out of 0..1, or an unknown blending method.
    """

    seed_id: str
    layer_id: str
    monitored_layers: tuple[str, ...] = ()
    specialization: str = "general"
    risk_tolerance: float = 0.5
    allowed_blending_methods: tuple[str, ...] = BLENDING_METHODS
    allowed_parameters: tuple[str, ...] | None = None
    quarantine_only: bool = False

    def __post_init__(self) -> None:
        if not self.seed_id:
            raise SiteInvalid(f"the seed_id of the site at {self.layer_id!r} is empty; name the seed")
        if not 0.0 <= self.risk_tolerance <= 1.0:
            raise SiteInvalid(f"risk_tolerance of {self.seed_id!r} is {self.risk_tolerance}; give 0..1")
        unknown = [name for name in self.allowed_blending_methods if name not in BLENDING_METHODS]
        if unknown:
            raise SiteInvalid(
                f"allowed_blending_methods of {self.seed_id!r} names {unknown[0]!r}; "
                f"use some of {', '.join(BLENDING_METHODS)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PlacedSite:
    """A site in its model: ``monitored`` are layers of the blueprint, ``parameters`` ids of its parameter groups.

    ``depth``: of the deepest layer at the site; ``scope``: share of the model's layers that are monitored.
    """

    site: SeedSite
    module: nn.Module
    monitored: tuple[Layer, ...]
    parameters: tuple[str, ...]
    depth: int | None
    scope: float


def place_sites(
    sites: Sequence[SeedSite], model: nn.Module, structure: ModelStructure, optimizer: Optimizer
) -> list[PlacedSite]:
    """Return ``sites`` in ``model``, whose blueprint has ``structure`` and the groups of ``optimizer``.

    Raises:
        SiteInvalid: a seed or a submodule used twice, or a name that the model or its blueprint does not have.
    """
    for what, names in (("seed_id", [s.seed_id for s in sites]), ("layer_id", [s.layer_id for s in sites])):
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise SiteInvalid(f"{what} {repeated[0]!r} is given twice; a submodule has one seed, a seed one site")
    return [_placed(site, model, structure, optimizer) for site in sites]


def _placed(site: SeedSite, model: nn.Module, structure: ModelStructure, optimizer: Optimizer) -> PlacedSite:
    try:
        module = model.get_submodule(site.layer_id)
    except AttributeError as error:
        raise SiteInvalid(f"layer_id of seed {site.seed_id!r}: {error}; use a path of named_modules()") from None
    layers = {layer.layer_id: layer for layer in structure.layers}
    inside = [layer for name, layer in layers.items() if f"{name}.".startswith(f"{site.layer_id}.")]
    named = site.monitored_layers or tuple(layer.layer_id for layer in inside)
    for name in named:
        if name not in layers:
            raise SiteInvalid(
                f"monitored_layers of {site.seed_id!r} names {name!r}; the blueprint has {', '.join(layers)}"
            )
    monitored = tuple(layers[name] for name in dict.fromkeys(named))
    return PlacedSite(
        site,
        module,
        monitored,
        _parameters(site, module, optimizer),
        max((layer.depth for layer in inside), default=None),
        len(monitored) / len(layers),
    )


def _parameters(site: SeedSite, module: nn.Module, optimizer: Optimizer) -> tuple[str, ...]:
    ids = group_ids(optimizer)
    if site.allowed_parameters is None:
        own = {id(tensor) for tensor in module.parameters()}
        groups = zip(ids, optimizer.param_groups, strict=True)
        return tuple(name for name, group in groups if any(id(tensor) in own for tensor in group["params"]))
    for name in site.allowed_parameters:
        if name not in ids:
            raise SiteInvalid(
                f"allowed_parameters of {site.seed_id!r} names {name!r}; the blueprint has {', '.join(ids)}"
            )
    return site.allowed_parameters
