"""Ratios come from pairs, with an interval that tells how far to trust them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.bench.pairs import percentiles, ratio_of, time_pairs

POSITIVE = st.floats(0.01, 1000)


def test_the_ratio_is_the_median_over_pairs_not_of_medians() -> None:
    slower, faster = np.array([10.0, 100.0, 30.0]), np.array([1.0, 50.0, 10.0])
    assert ratio_of(slower, faster).median == 3.0


def test_a_constant_ratio_has_no_spread() -> None:
    times = np.linspace(1, 9, 30)
    ratio = ratio_of(3 * times, times)
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((3, 3, 3))
    assert ratio.pairs == 30


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=40))
def test_the_interval_holds_the_median_and_stays_among_the_pairs(pairs) -> None:
    slower, faster = np.array(pairs).T
    ratio = ratio_of(slower, faster)
    ratios = slower / faster
    assert ratios.min() <= ratio.low <= ratio.high <= ratios.max()
    assert ratio.low * (1 - 1e-9) <= ratio.median <= ratio.high * (1 + 1e-9)


def test_the_order_alternates_so_that_neither_is_always_first() -> None:
    calls: list[str] = []
    first, second = time_pairs(lambda: calls.append("a"), lambda: calls.append("b"), 4)
    assert "".join(calls) == "abbaabba"
    assert first.shape == second.shape == (4,)


def test_percentiles_are_named() -> None:
    assert percentiles("plan", range(101)) == {"plan.p50_ms": 50.0, "plan.p95_ms": 95.0}
