"""What a kernel of the catalogue is: a descriptor for Tamiyo, bounds that hold, and a module that can be built."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from schemas.urza import BlueprintDescriptor

#: Values of a kernel's parameters by name; complete and within their bounds where a factory gets them.
Parameters = Mapping[str, float]


class KernelParameterInvalid(ValueError):
    """A kernel does not have the parameter, or the value is outside its bounds."""


class KernelWidthInvalid(ValueError):
    """A kernel cannot be built at this feature width."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """A parameter of a kernel: inclusive bounds, the value it has unless told otherwise, ``whole`` for counts."""

    name: str
    minimum: float
    maximum: float
    default: float
    whole: bool = False

    def checked(self, value: float, kernel: str) -> float:
        """Return ``value``.

        Raises:
            KernelParameterInvalid: naming kernel, parameter, value and range.
        """
        kind = "whole number" if self.whole else "number"
        if not self.minimum <= value <= self.maximum or (self.whole and value != int(value)):
            raise KernelParameterInvalid(
                f"kernel {kernel}: {self.name} is {value}; give a {kind} from {self.minimum:g} to {self.maximum:g}"
            )
        return float(value)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the catalogue.

    Attributes:
        blueprint_id: as commands and safety sheets name it.
        name: for people; snake case.
        descriptor: what Tamiyo is told; its ``allowed_parameters`` are the bounds of ``tunables``.
        factory: the module for a width and complete parameters. Use :meth:`build`.
        tunables: what may be set.
        zero_output: with its defaults the kernel puts out exactly zero until it is trained: added to a host it
            changes nothing.
        family: what kind of module it is, for people.
    """

    blueprint_id: str
    name: str
    descriptor: BlueprintDescriptor
    factory: Callable[[int, Parameters], nn.Module]
    tunables: tuple[Tunable, ...]
    zero_output: bool
    family: str

    def build(self, width: int, parameters: Parameters | None = None) -> nn.Module:
        """Return a new module that maps features [..., width] to the same shape.

        Equal arguments give equal weights: the published checksum holds for what is grafted. torch's random state
        is left as it was, so that a graft does not change which batches a training run draws.

        Raises:
            KernelWidthInvalid: ``width`` is below 1.
            KernelParameterInvalid: an unknown parameter, or a value outside its bounds.
        """
        if width < 1:
            raise KernelWidthInvalid(f"kernel {self.blueprint_id}: width is {width}; give the number of features")
        complete = self.complete(parameters or {})
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(zlib.crc32(f"{self.blueprint_id}:{width}".encode()))
            return self.factory(width, complete)

    def complete(self, parameters: Parameters) -> dict[str, float]:
        """Return ``parameters`` with the defaults of those not given.

        Raises:
            KernelParameterInvalid: an unknown parameter, or a value outside its bounds.
        """
        known = {tunable.name: tunable for tunable in self.tunables}
        for name, value in parameters.items():
            if name not in known:
                choices = ", ".join(known) or "none"
                raise KernelParameterInvalid(
                    f"kernel {self.blueprint_id} has no parameter {name!r} (given {value}); it has: {choices}"
                )
        return {
            name: tunable.checked(parameters.get(name, tunable.default), self.blueprint_id)
            for name, tunable in known.items()
        }
