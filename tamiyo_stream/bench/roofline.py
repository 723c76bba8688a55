"""The machine's limits, measured in the same run: how fast products and copies can be (design §8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tamiyo_stream.bench.pairs import time_once
from tamiyo_stream.inference.products import Linear, Products

#: Shapes (rows, in, out) that dominate the network: a layer's products at 10 000 nodes.
_SHAPES = ((6000, 256, 256), (6000, 128, 256), (3000, 256, 512))
_COPY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Roofline:
    """Measured limits.

    ``gemm_gflops``: best rate of the products, 10⁹ operations per second, a multiply-add counting two.
    ``copy_gb_s``: best rate of a copy beyond the caches, bytes read plus bytes written, 10⁹ per second.
    """

    gemm_gflops: float
    copy_gb_s: float

    def floor_ms(self, flops: float, moved: float) -> float:
        """Return the least time for ``flops`` operations and ``moved`` bytes that do not overlap."""
        return flops / self.gemm_gflops / 1e6 + moved / self.copy_gb_s / 1e6


class RooflineProbe:
    """Measures the limits as often as asked, so that they can be taken in turns with what they limit.

    ``products`` are those the network uses; the calling thread's number of threads counts.
    """

    def __init__(self, products: Products) -> None:
        self._products: list[tuple[Linear, Tensor]] = [
            (
                products.linear(torch.randn(out, width), torch.zeros(out)),
                torch.randn(rows, width).to(products.dtype),
            )
            for rows, width, out in _SHAPES
        ]
        self._source, self._target = torch.zeros(_COPY_BYTES // 4), torch.zeros(_COPY_BYTES // 4)

    @torch.inference_mode()
    def measure(self) -> Roofline:
        """Return the limits at this moment."""
        flops = sum(2.0 * rows * width * out for rows, width, out in _SHAPES)
        product_ms = sum(time_once(partial(product, x)) for product, x in self._products)
        copy_ms = time_once(lambda: self._target.copy_(self._source))
        return Roofline(gemm_gflops=flops / product_ms / 1e6, copy_gb_s=2 * _COPY_BYTES / copy_ms / 1e6)
