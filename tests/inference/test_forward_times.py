"""The next forward's time is read off the newest ones; it is never negative and never falls with size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.inference import forward_times
from tamiyo_stream.inference.forward_times import ForwardTimes


def times_of(*recorded: tuple[int, float]) -> ForwardTimes:
    times = ForwardTimes()
    for size, forward_ms in recorded:
        times.record(size, forward_ms)
    return times


def test_nothing_is_expected_before_the_first_forward() -> None:
    assert ForwardTimes().expected_ms(1000) == 0
    assert ForwardTimes().percentile(0.95) == 0


def test_base_and_slope_are_found() -> None:
    times = times_of((100, 12.0), (200, 14.0), (400, 18.0))
    assert [times.expected_ms(size) for size in (0, 300, 1000)] == pytest.approx([10, 16, 30])


def test_one_size_alone_gives_its_mean() -> None:
    assert times_of((100, 10.0), (100, 20.0)).expected_ms(5000) == pytest.approx(15)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e4)), min_size=1, max_size=40), st.integers(0, 10**6)
)
def test_expectations_are_never_negative_and_never_fall_with_size(recorded, size) -> None:
    times = times_of(*recorded)
    assert times.expected_ms(size) >= -1e-6
    assert times.expected_ms(size) <= times.expected_ms(size + 1000) + 1e-6


def test_percentiles_are_of_the_window_only(monkeypatch) -> None:
    monkeypatch.setattr(forward_times, "WINDOW", 3)
    times = times_of((1, 99.0), (1, 1.0), (1, 2.0), (1, 3.0))
    assert (times.percentile(0.5), times.percentile(0.95)) == (2.0, 3.0)
