"""Which learned tensors belong to which layer and parameter group, for sums over either.

Norms are measured once per tensor and put together here: the squared norm of a layer is the sum over its tensors.
A tensor that two layers share counts in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from tamiyo_stream.upstream.tolaria.structure import ModelStructure

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Membership:
    """Entries (owner, tensor): which tensors each of ``count`` owners has."""

    owner: IndexArray
    tensor: IndexArray
    count: int

    def sums(self, values: FloatArray, present: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the sum of ``values`` [T] over each owner's ``present`` tensors: [count].

        An owner without tensors has the empty sum, 0; one whose tensors are all absent has NaN.
        """
        chosen = present[self.tensor]
        totals: FloatArray = np.bincount(
            self.owner[chosen], weights=values[self.tensor[chosen]], minlength=self.count
        ).astype(np.float64)
        found = np.bincount(self.owner[chosen], minlength=self.count)
        totals[(found == 0) & self.owned] = np.nan
        return totals

    @cached_property
    def owned(self) -> npt.NDArray[np.bool_]:
        """[count] whether the owner has tensors at all."""
        return np.bincount(self.owner, minlength=self.count) > 0


@dataclass(frozen=True, slots=True, eq=False)
class TensorLayout:
    """The distinct learned tensors of a model and its optimizer, and their owners."""

    tensors: tuple[torch.Tensor, ...]
    layers: Membership
    groups: Membership
    fingerprint: Fingerprint = field(repr=False)

    @property
    def in_groups(self) -> npt.NDArray[np.bool_]:
        """[T] whether the optimizer updates the tensor."""
        mask = np.zeros(len(self.tensors), dtype=np.bool_)
        mask[self.groups.tensor] = True
        return mask


def lay_out(structure: ModelStructure, model: nn.Module, optimizer: Optimizer) -> TensorLayout:
    """Return the layout of ``model``'s and ``optimizer``'s tensors, in order of first appearance."""
    place: dict[int, int] = {}
    tensors: list[torch.Tensor] = []
    layers: list[tuple[int, int]] = []
    groups: list[tuple[int, int]] = []
    owners = (
        (layers, [list(layer.parameters) for layer in structure.layers]),
        (groups, [group["params"] for group in optimizer.param_groups]),
    )
    for entries, owned in owners:
        for owner, members in enumerate(owned):
            for tensor in members:
                if id(tensor) not in place:
                    place[id(tensor)] = len(tensors)
                    tensors.append(tensor)
                entries.append((owner, place[id(tensor)]))
    return TensorLayout(
        tuple(tensors),
        _membership(layers, len(structure.layers)),
        _membership(groups, len(optimizer.param_groups)),
        Fingerprint(model, optimizer),
    )


class Fingerprint:
    """Tells cheaply whether modules or learned tensors were added, removed or replaced since it was taken.

    It compares the identities in the registers of the modules it knows: whatever is added shows in one of them.
    About 0.1 µs per module and tensor, so that every step can ask.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._registers: list[Mapping[str, object]] = []
        for module in model.modules():
            self._registers += [module._modules, module._parameters]
        self._optimizer = optimizer
        self._taken = self._identities()
        # While they are held here no object made later can have the identity of one that was replaced.
        self._held = [value for register in self._registers for value in register.values()]

    def differs(self) -> bool:
        """Return whether anything changed."""
        return self._identities() != self._taken

    def _identities(self) -> list[int]:
        identities = list(map(id, chain.from_iterable(register.values() for register in self._registers)))
        identities.extend(len(group["params"]) for group in self._optimizer.param_groups)
        return identities


def _membership(entries: Sequence[tuple[int, int]], count: int) -> Membership:
    table = np.asarray(entries, dtype=np.int64).reshape(-1, 2)
    return Membership(table[:, 0], table[:, 1], count)
