"""Alpha rises from 0 to 1 within its window, never falls, and never leaves 0..1."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.enums import BLENDING_METHODS
from tamiyo_stream.upstream.kasmina.blending import CURVES, BlendingSchedule, ScheduleInvalid, schedule_of

windows = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
schedules = st.builds(
    lambda method, window, total, temperature: BlendingSchedule(method, *window, total, temperature),
    st.sampled_from(BLENDING_METHODS),
    windows,
    st.integers(1, 500),
    st.floats(1e-6, 1e6),
)


def test_every_method_of_the_wire_has_a_curve():
    assert tuple(CURVES) == BLENDING_METHODS


@given(schedules, st.integers(-3, 600))
def test_alpha_is_a_share(schedule, steps):
    assert 0.0 <= schedule.alpha(steps) <= 1.0


@given(schedules)
def test_alpha_never_falls(schedule):
    alphas = [schedule.alpha(step) for step in range(schedule.total_steps + 2)]
    assert alphas == sorted(alphas)


@given(schedules)
def test_alpha_is_zero_before_the_start_and_one_from_the_end_on(schedule):
    for step in range(schedule.total_steps + 1):
        fraction = step / schedule.total_steps
        if fraction < schedule.start:
            assert schedule.alpha(step) == 0.0
        if fraction >= schedule.end:
            assert schedule.alpha(step) == 1.0


@pytest.mark.parametrize(
    ("method", "quarter", "half"),
    [
        ("linear", 0.25, 0.5),
        ("cosine", 0.5 * (1 - math.cos(math.pi / 4)), 0.5),
        ("warmup_hold", 1.0, 1.0),
        ("sigmoid", 0.0759, 0.5),  # logistic((5 - 10) / 2), its ends at steps 0 and 20 stretched to 0 and 1
    ],
)
def test_the_families_differ_as_documented(method, quarter, half):
    schedule = BlendingSchedule(method, total_steps=20, temperature=2.0)
    stretched = 1 / (1 + math.exp(2.5)) if method == "sigmoid" else quarter

    assert schedule.alpha(5) == pytest.approx(stretched, abs=0.007)
    assert schedule.alpha(10) == pytest.approx(half)
    assert schedule.alpha(5) == pytest.approx(quarter, abs=0.007)


def test_a_higher_temperature_flattens_the_sigmoid():
    sharp, flat = (BlendingSchedule("sigmoid", total_steps=20, temperature=t) for t in (1.0, 6.0))

    assert sharp.alpha(6) < flat.alpha(6) < 0.3


def test_the_window_is_squeezed_between_start_and_end():
    schedule = BlendingSchedule("linear", 0.5, 0.9, 10)

    assert [schedule.alpha(step) for step in (4, 5, 7, 9)] == pytest.approx([0.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"method": "cubic"}, "linear, cosine"),
        ({"start": 0.6, "end": 0.5}, "ordered fractions"),
        ({"end": 1.1}, "within 0..1"),
        ({"start": math.nan}, "within 0..1"),
        ({"total_steps": 0}, "at least one step"),
        ({"temperature": 0.0}, "positive"),
    ],
)
def test_a_schedule_that_does_not_rise_is_refused(fields, complaint):
    with pytest.raises(ScheduleInvalid, match=complaint):
        BlendingSchedule(**fields)


def test_a_commands_parameters_choose_method_and_window():
    parameters = {"blending_method_index": 3.0, "blending_schedule_start": 0.2, "blending_schedule_end": 0.8}

    assert schedule_of(parameters, BLENDING_METHODS, 30) == BlendingSchedule("sigmoid", 0.2, 0.8, 30)


def test_without_parameters_the_first_allowed_method_and_the_whole_window_are_used():
    assert schedule_of({}, ("cosine", "linear"), 20) == BlendingSchedule("cosine")


@pytest.mark.parametrize(
    ("parameters", "allowed", "complaint"),
    [
        ({"blending_method_index": 1.0}, ("linear",), "'cosine' is not allowed"),
        ({"blending_method_index": 1.5}, BLENDING_METHODS, "use 0 to 3"),
        ({"blending_method_index": 4.0}, BLENDING_METHODS, "use 0 to 3"),
        ({"alpha": math.nan}, BLENDING_METHODS, "alpha is nan"),
        ({"blending_schedule_start": 0.9, "blending_schedule_end": 0.1}, BLENDING_METHODS, "ordered"),
        ({}, (), "allows no blending method"),
    ],
)
def test_parameters_that_ask_for_the_impossible_are_refused(parameters, allowed, complaint):
    with pytest.raises(ScheduleInvalid, match=complaint):
        schedule_of(parameters, allowed, 20)
