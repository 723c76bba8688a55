"""The activation table: which functions are activation nodes, what they cost, and where they are saturated.

An output counts as saturated where the function is flat, ``|dy/dx| < 0.05``; for the monotonic and near-monotonic
functions of the table that is a half-line of inputs on either side. Softmax has no such inputs: there the share is
the probability mass on entries above 0.95, which is the share of rows that one entry dominates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

FloatArray = npt.NDArray[np.float32]

DOMINANT_PROBABILITY = 0.95


@dataclass(frozen=True, slots=True)
class ActivationType:
    """One activation function.

    Attributes:
        name: type on the wire, and the name of the torch functions that compute it.
        cost: operations per element (an exponential counts four).
        modules: the module classes.
        flat_below: inputs at or below it are saturated.
        flat_above: inputs at or above it are saturated.
        probabilities: the output is a distribution, see the module docstring.
        alarm: saturation rate above which a step counts as a saturation event. One-sided functions are meant to be
            flat on half of their inputs: only nearly dead ones are worth an event.
        one_operation: computed by one autograd node, whose gradients tell what the activation lets through.
        aliases: further torch function names.
    """

    name: str
    cost: float
    modules: tuple[type[nn.Module], ...] = ()
    flat_below: float = -math.inf
    flat_above: float = math.inf
    probabilities: bool = False
    alarm: float = 0.95
    one_operation: bool = True
    aliases: tuple[str, ...] = ()

    def saturation_rate(self, inputs: FloatArray, outputs: FloatArray) -> float:
        """Return the saturated share of ``outputs``; NaN where the type has no flat region."""
        if self.probabilities:
            mass = float(outputs.sum())
            return float(outputs[outputs > DOMINANT_PROBABILITY].sum()) / mass if mass > 0 else math.nan
        if math.isinf(self.flat_below) and math.isinf(self.flat_above):
            return math.nan
        return float(np.mean((inputs <= self.flat_below) | (inputs >= self.flat_above)))


ACTIVATIONS: tuple[ActivationType, ...] = (
    ActivationType("relu", 1, (nn.ReLU,), flat_below=0.0),
    ActivationType("relu6", 2, (nn.ReLU6,), flat_below=0.0, flat_above=6.0),
    ActivationType("leaky_relu", 2, (nn.LeakyReLU,), flat_below=0.0),
    ActivationType("prelu", 2, (nn.PReLU,)),
    ActivationType("rrelu", 3, (nn.RReLU,)),
    ActivationType("elu", 5, (nn.ELU,), flat_below=-3.0),
    ActivationType("celu", 6, (nn.CELU,), flat_below=-3.0),
    ActivationType("selu", 6, (nn.SELU,), flat_below=-3.56),
    ActivationType("gelu", 8, (nn.GELU,), flat_below=-2.35),
    ActivationType("silu", 6, (nn.SiLU,), flat_below=-4.1),
    ActivationType("mish", 10, (nn.Mish,), flat_below=-3.9),
    ActivationType("softplus", 8, (nn.Softplus,), flat_below=-2.94),
    ActivationType("sigmoid", 6, (nn.Sigmoid,), flat_below=-2.89, flat_above=2.89, alarm=0.5, aliases=("expit",)),
    ActivationType("logsigmoid", 9, (nn.LogSigmoid,), flat_above=2.94, alarm=0.5),
    ActivationType("tanh", 8, (nn.Tanh,), flat_below=-2.18, flat_above=2.18, alarm=0.5),
    ActivationType(
        "softsign", 3, (nn.Softsign,), flat_below=-3.47, flat_above=3.47, alarm=0.5, one_operation=False
    ),
    ActivationType("hardtanh", 2, (nn.Hardtanh,), flat_below=-1.0, flat_above=1.0, alarm=0.5),
    ActivationType("hardsigmoid", 3, (nn.Hardsigmoid,), flat_below=-3.0, flat_above=3.0, alarm=0.5),
    ActivationType("hardswish", 4, (nn.Hardswish,), flat_below=-3.0),
    ActivationType("glu", 7, (nn.GLU,)),
    ActivationType("softmax", 6, (nn.Softmax, nn.Softmax2d), probabilities=True, alarm=0.5),
    ActivationType("log_softmax", 7, (nn.LogSoftmax,)),
    # Fused: its probabilities are never materialised, so neither saturation nor linearity can be seen.
    ActivationType("attention", 6, one_operation=False, aliases=("scaled_dot_product_attention",)),
)

BY_NAME: dict[str, ActivationType] = {activation.name: activation for activation in ACTIVATIONS}
_BY_FUNCTION: dict[str, ActivationType] = {
    name: activation
    for activation in ACTIVATIONS
    for name in (activation.name, *activation.aliases)
    if name != "attention"
}
_BY_FUNCTION |= {f"{name}_": activation for name, activation in _BY_FUNCTION.items()}  # in place
_BY_MODULE: dict[type[nn.Module], ActivationType] = {
    module: activation for activation in ACTIVATIONS for module in activation.modules
}


def activation_of_function(name: str) -> ActivationType | None:
    """Return the activation that the torch function or tensor method ``name`` computes (in place or not)."""
    return _BY_FUNCTION.get(name)


def activation_of_module(module: nn.Module) -> ActivationType | None:
    """Return the activation that ``module`` computes, subclasses included."""
    for kind in type(module).__mro__:
        if kind in _BY_MODULE:
            return _BY_MODULE[kind]
    return None
