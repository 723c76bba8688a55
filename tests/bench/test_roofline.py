"""The floor follows from the counts and the measured rates."""

from __future__ import annotations

import pytest

from tamiyo_stream.bench.machine import machine
from tamiyo_stream.bench.roofline import Roofline, RooflineProbe
from tamiyo_stream.inference.products import plain


def test_the_floor_adds_arithmetic_and_traffic() -> None:
    limits = Roofline(gemm_gflops=100.0, copy_gb_s=10.0)
    assert limits.floor_ms(2e9, 0) == pytest.approx(20.0)
    assert limits.floor_ms(0, 1e9) == pytest.approx(100.0)
    assert limits.floor_ms(2e9, 1e9) == pytest.approx(120.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_rates_are_measured(precision) -> None:
    limits = RooflineProbe(plain(precision)).measure()
    assert limits.gemm_gflops > 0
    assert limits.copy_gb_s > 0


def test_the_machine_is_named() -> None:
    named = machine()
    assert named["machine.cpu"]
    assert int(named["machine.cores"]) >= 1
    assert str(named["machine.torch"]).startswith("2.")
