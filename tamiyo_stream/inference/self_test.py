"""Chooses the way to compute products by trying each: by time and by error, never by a flag's name (design §8).

On a processor with AMX a "medium" precision means bfloat16 products, on another exact ones; which library is
faster depends on the maker. So each way computes the same product, is timed, and is compared with float64.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from tamiyo_stream.inference.products import WAYS, Candidate, Linear, Precision, Products

#: Largest deviation from float64 relative to the largest element. float32 leaves 5e-7 here, bfloat16 4e-3; a way
#: that secretly uses fewer bits (TF32 leaves 3e-4) is refused.
ERROR_BOUNDS: dict[Precision, float] = {"fp32": 5e-6, "bf16": 1e-2}
#: Rows of the test products, as a stage of a large graph has and as a small one has, between 256 and 256 channels.
_ROWS = (1024, 24)
_CHANNELS = 256
#: Each way is timed this often, the ways in turn, so that a disturbance does not hit one alone.
_REPETITIONS = 7


class NoProducts(RuntimeError):
    """No way to compute products is exact enough on this machine."""


def choose_products(precision: Precision, threads: int) -> Products:
    """Return the fastest products of ``precision`` within its error bound, with a report of every way tried.

    Takes about 20 ms. CPU only; elsewhere use ``products.plain``. The number of threads of the calling thread is
    set to ``threads`` meanwhile.

    Raises:
        NoProducts: each way failed or deviates too much; the message names them.
    """
    x, weight, bias = _operands()
    with torch.inference_mode(), _threads(threads):
        expected = x.double() @ weight.double().T + bias
        trials = [_Trial(way(precision), x, weight, bias, expected) for way in WAYS]
        for _ in range(_REPETITIONS):
            for trial in trials:
                trial.time()
    report = tuple(trial.candidate for trial in trials)
    usable = [trial for trial in trials if not trial.candidate.refusal]
    if not usable:
        found = "; ".join(f"{candidate.name}: {candidate.refusal}" for candidate in report)
        raise NoProducts(f"no way to compute {precision} products can be used here: {found}")
    best = min(usable, key=lambda trial: trial.candidate.milliseconds)
    return replace(best.products, report=report)


class _Trial:
    """One way under test."""

    def __init__(self, products: Products, x: Tensor, weight: Tensor, bias: Tensor, expected: Tensor) -> None:
        self.products = products
        self.candidate = Candidate(products.name)
        self._x = x.to(products.dtype)
        try:
            self._linear: Linear = products.linear(weight, bias)
            found = self._linear(self._x)
        except (AttributeError, RuntimeError, NotImplementedError) as error:  # not in this build, not on this CPU
            self.candidate = replace(self.candidate, refusal=f"does not work: {error}".splitlines()[0])
            return
        deviation = float((found.double() - expected).abs().max() / expected.abs().max())
        bound = ERROR_BOUNDS[products.precision]
        self.candidate = replace(
            self.candidate,
            error=deviation,
            same_in_any_batch=all(torch.equal(self._linear(self._x[:rows]), found[:rows]) for rows in (1, 3, 24)),
            refusal="" if deviation <= bound else f"error {deviation:.1e} is over {bound:.0e}",
        )

    def time(self) -> None:
        """Time the test products once more."""
        if self.candidate.refusal:
            return
        started = time.perf_counter()
        for rows in _ROWS:
            self._linear(self._x[:rows])
        took = (time.perf_counter() - started) * 1000
        self.candidate = replace(self.candidate, milliseconds=min(self.candidate.milliseconds, took))


def _operands() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(max(_ROWS), _CHANNELS, generator=random)
    weight = torch.randn(_CHANNELS, _CHANNELS, generator=random) / _CHANNELS**0.5
    return x, weight, torch.randn(_CHANNELS, generator=random)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
