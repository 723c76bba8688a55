"""Matrix products on one device: the ways to compute ``x @ W.T + b`` with weights prepared once (design §8).

Which way is fastest differs by processor and library, and no flag tells: ``inference.self_test`` measures. No way
touches a global setting of torch, so the training process beside keeps its own (``float32_matmul_precision`` would
be shared by all threads, and a value restored by one thread could be another's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

#: Number format of weights and activations.
Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: Computes [N, in] -> [N, out] with weights of its own.
Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute products as the self-test found it.

    Attributes:
        name: of the way.
        milliseconds: the test product's, the fastest repetition.
        error: largest deviation from the float64 product, relative to its largest element.
        same_in_any_batch: whether each row's result is bit for bit the same, however many rows there are.
        refusal: why it cannot be used; empty if it can.
    """

    name: str
    milliseconds: float = float("inf")
    error: float = float("inf")
    same_in_any_batch: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Products:
    """One way to compute products.

    Attributes:
        name: of the way.
        precision: of weights and activations.
        prepare: takes weight [out, in] and bias [out] or None, both of the type to compute in.
        report: what the self-test found of each way it tried; empty where there was none.
    """

    name: str
    precision: Precision
    prepare: Callable[[Tensor, Tensor | None], Linear]
    report: tuple[Candidate, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return DTYPES[self.precision]

    def linear(self, weight: Tensor, bias: Tensor | None, *, precision: Precision | None = None) -> Linear:
        """Return the product with copies of ``weight`` [out, in] and ``bias`` [out].

        ``precision``: to compute in; None = these products' own.
        """
        dtype = DTYPES[precision or self.precision]
        own = weight.detach().to(dtype, copy=True).contiguous()
        return self.prepare(own, None if bias is None else bias.detach().to(dtype, copy=True))


def plain(precision: Precision = "fp32") -> Products:
    """Return torch's own products, on any device."""
    return Products("torch", precision, lambda weight, bias: lambda x: functional.linear(x, weight, bias))


def onednn(precision: Precision = "fp32") -> Products:
    """Return oneDNN's products with weights laid out for it, on the CPU only.

    Raises, when it is used:
        AttributeError: this build of torch has no oneDNN.
    """
    return Products("onednn", precision, _prepacked)


def _prepacked(weight: Tensor, bias: Tensor | None) -> Linear:
    width = weight.shape[0]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    product = torch.ops.mkldnn._linear_pointwise.default

    def apply(x: Tensor) -> Tensor:
        if not x.shape[0]:
            return x.new_empty(0, width)
        out: Tensor = product(x, packed, bias, "none", [], "")
        return out

    return apply


#: Every way there is.
WAYS: tuple[Callable[[Precision], Products], ...] = (plain, onednn)
