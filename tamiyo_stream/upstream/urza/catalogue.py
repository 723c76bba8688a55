"""The catalogue: one table of kernels in the bands of ``domain.md`` §4.10.

Ids, risk and stage follow Karn's bands: safe BP001 to BP035 (risk up to 0.5, stage 0 to 4), experimental BP036 to
BP042 (0.7 or 0.8, stage 5, to be approved), hazardous BP043 to BP050 (from 0.9, stage 6, quarantine only). Risk
rises with what a kernel can do wrong: scaling, then mixing channels, then positions, then routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from schemas.enums import BlueprintTier
from schemas.urza import BlueprintDescriptor, BlueprintParameterBounds
from tamiyo_stream.upstream.urza.experimental import PolynomialGate, SinusoidalBlock
from tamiyo_stream.upstream.urza.feed_forward import BottleneckAdapter, GatedMlp, GeluMlp, NormLinear, SoftExperts
from tamiyo_stream.upstream.urza.gates import HighwayGate, Identity, ScaleShift, SqueezeExciteGate
from tamiyo_stream.upstream.urza.hazardous import (
    ExplodingGradient,
    MemoryHog,
    NanInjector,
    Oscillator,
    PrecisionSensitive,
    VanishingGradient,
)
from tamiyo_stream.upstream.urza.kernel import Kernel, Parameters, Tunable
from tamiyo_stream.upstream.urza.sequences import FastWeights, LowRankAttention, TemporalConv

#: The last number of each tier's band, and what grafting a kernel of it takes (fields of the descriptor).
_BANDS: tuple[tuple[int, BlueprintTier, dict[str, Any]], ...] = (
    (35, BlueprintTier.SAFE, {}),
    (42, BlueprintTier.EXPERIMENTAL, {"approval_required": True}),
    (50, BlueprintTier.HIGH_RISK, {"approval_required": True, "quarantine_only": True}),
)


def _kernel(
    blueprint_id: str,
    factory: Callable[[int, Parameters], nn.Module],
    name: str,
    risk: float,
    stage: int,
    *tunables: Tunable,
    zero_output: bool = True,
) -> Kernel:
    number = int(blueprint_id.removeprefix("BP"))
    tier, terms = next((tier, terms) for last, tier, terms in _BANDS if number <= last)
    descriptor = BlueprintDescriptor(
        name=name,
        tier=tier,
        allowed_parameters={
            tunable.name: BlueprintParameterBounds(
                min_value=tunable.minimum, max_value=tunable.maximum, whole=tunable.whole
            )
            for tunable in tunables
        },
        risk=risk,
        stage=stage,
        description=(factory.__doc__ or name).partition("\n")[0],
        **terms,
    )
    family = factory.__module__.rpartition(".")[2]
    return Kernel(blueprint_id, name, descriptor, factory, tunables, zero_output, family)


_RANK = Tunable("rank", 2, 64, 8, whole=True)
_EXPANSION = Tunable("expansion", 1, 4, 2)
_EPSILON = Tunable("norm_epsilon", 1e-6, 1e-2, 1e-5)
_REDUCTION = Tunable("reduction", 2, 16, 4, whole=True)
_REACH = Tunable("kernel_size", 2, 8, 3, whole=True)
_BLOCK = Tunable("block_megabytes", 8, 32, 8, whole=True)
_HELD = Tunable("held_megabytes", 96, 256, 96, whole=True)

KERNELS: tuple[Kernel, ...] = (
    _kernel("BP001", Identity, "identity", 0.0, 0, zero_output=False),
    _kernel("BP002", ScaleShift, "scale_shift", 0.05, 0, Tunable("initial_scale", 0, 1, 0)),
    _kernel("BP003", BottleneckAdapter, "bottleneck_adapter", 0.1, 1, _RANK),
    _kernel("BP004", NormLinear, "norm_linear", 0.1, 1, _EPSILON),
    _kernel("BP005", GeluMlp, "gelu_mlp", 0.15, 1, _EXPANSION),
    _kernel("BP006", GatedMlp, "gated_mlp", 0.2, 1, _EXPANSION),
    _kernel("BP007", GeluMlp, "dropout_mlp", 0.2, 2, _EXPANSION, Tunable("dropout", 0, 0.5, 0.1)),
    _kernel("BP008", SqueezeExciteGate, "squeeze_excite_gate", 0.2, 2, _REDUCTION),
    _kernel("BP009", HighwayGate, "highway_gate", 0.3, 2, Tunable("gate_bias", -4, 0, -3), zero_output=False),
    _kernel("BP010", TemporalConv, "temporal_conv", 0.3, 3, _REACH),
    _kernel("BP011", LowRankAttention, "low_rank_attention", 0.3, 3, _RANK),
    _kernel("BP012", SoftExperts, "soft_experts", 0.4, 4, Tunable("experts", 2, 8, 4, whole=True)),
    _kernel("BP036", SinusoidalBlock, "sinusoidal_block", 0.7, 5, Tunable("frequency", 1, 30, 6)),
    _kernel("BP037", PolynomialGate, "polynomial_gate", 0.7, 5, Tunable("order", 2, 5, 3, whole=True)),
    _kernel("BP038", FastWeights, "fast_weights", 0.8, 5, Tunable("decay", 0.5, 0.99, 0.9)),
    _kernel(
        "BP043", ExplodingGradient, "exploding_gradient", 0.95, 6, Tunable("gain", 2.5, 4, 3), zero_output=False
    ),
    _kernel(
        "BP044",
        VanishingGradient,
        "vanishing_gradient",
        0.9,
        6,
        Tunable("depth", 12, 24, 16, whole=True),
        zero_output=False,
    ),
    _kernel("BP045", NanInjector, "nan_injector", 1.0, 6, Tunable("threshold", 0, 2, 1), zero_output=False),
    _kernel("BP046", Oscillator, "oscillator", 0.9, 6, Tunable("amplitude", 0.5, 2, 1), zero_output=False),
    _kernel("BP047", MemoryHog, "memory_hog", 0.95, 6, _BLOCK, _HELD, zero_output=False),
    _kernel(
        "BP048",
        PrecisionSensitive,
        "precision_sensitive",
        0.9,
        6,
        Tunable("offset", 1e7, 1e9, 1e8),
        zero_output=False,
    ),
)

_BY_ID = MappingProxyType({kernel.blueprint_id: kernel for kernel in KERNELS})


def catalogue() -> Mapping[str, Kernel]:
    """Return the kernels by blueprint id, in the order in which they take Tamiyo's kernel slots."""
    return _BY_ID
