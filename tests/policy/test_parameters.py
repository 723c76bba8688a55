"""Parameters of commands: finite, in their bounds, whatever the network says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.urza import BlueprintDescriptor, BlueprintParameterBounds
from tamiyo_stream.policy.blending import Blending
from tamiyo_stream.policy.parameters import (
    COMMAND_PARAMETERS,
    germination_parameters,
    kernel_parameters,
    learning_rate_change,
)

BLENDING = Blending("cosine", 0.25, 0.75)


def descriptor(**bounds: tuple[float, float]) -> BlueprintDescriptor:
    return BlueprintDescriptor(
        allowed_parameters={
            name: BlueprintParameterBounds(min_value=low, max_value=high) for name, (low, high) in bounds.items()
        }
    )


def test_outputs_are_scaled_into_the_kernels_bounds_in_name_order() -> None:
    found = kernel_parameters(descriptor(width=(8, 16), gain=(-1, 1), heads=(4, 6)), None, (-1.0, 1.0, 0.0, 0.5))
    assert found == {"gain": -1.0, "heads": 6.0, "width": 12.0}


def test_parameters_beyond_the_four_outputs_stand_in_the_middle() -> None:
    found = kernel_parameters(descriptor(**{f"p{i}": (0, 10) for i in range(6)}), None, (1.0,) * 4)
    assert list(found.values()) == [10.0] * 4 + [5.0] * 2


@pytest.mark.parametrize("end", [math.inf, -math.inf])
def test_a_parameter_without_finite_bounds_is_left_to_the_kernel(end) -> None:
    low, high = sorted((0.0, end))
    assert kernel_parameters(descriptor(gain=(low, high)), None, (0.5,)) == {}


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (None, {"gain", "width"}),
        ([], set()),
        (["gain"], {"gain"}),
        (["group0", "gain"], {"gain"}),
        (["group0"], {"gain", "width"}),
    ],
)
def test_a_seeds_list_restricts_the_kernels_parameters(allowed, names) -> None:
    found = kernel_parameters(descriptor(gain=(0, 1), width=(0, 1)), allowed, (0.0,) * 4)
    assert set(found) == names


def test_a_kernel_cannot_redefine_what_every_germination_carries() -> None:
    found = germination_parameters(BLENDING, descriptor(alpha=(1, 1), gain=(0, 1)), None, (1.0,) * 4)
    assert found == {
        "gain": 1.0,
        "alpha": 0.0,
        "blending_method_index": 1.0,
        "blending_schedule_start": 0.25,
        "blending_schedule_end": 0.75,
    }


def test_a_kernel_without_descriptor_has_no_parameters_of_its_own() -> None:
    assert set(germination_parameters(BLENDING, None, None, ())) == set(COMMAND_PARAMETERS) - {"lr_change"}


@pytest.mark.parametrize(
    ("output", "largest", "raise_allowed", "change"),
    [
        (1.0, 0.1, True, 0.1),
        (-1.0, 0.1, True, -0.1),
        (0.5, 0.1, False, 0.0),
        (-0.5, 0.1, False, -0.05),
        (7.0, 0.1, True, 0.1),
        (1.0, 3.0, True, 0.5),
    ],
)
def test_a_learning_rate_change_is_bounded_and_never_raised_under_a_downgrade(
    output, largest, raise_allowed, change
) -> None:
    assert learning_rate_change(output, largest, raise_allowed=raise_allowed) == pytest.approx(change)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-2, 2),
)
def test_no_bounds_whatsoever_yield_a_value_outside_them(one, other, output) -> None:
    low, high = sorted((one, other))
    value = kernel_parameters(descriptor(gain=(low, high)), None, (output,))["gain"]
    assert low <= value <= high
    assert math.isfinite(value)


@pytest.mark.parametrize("output", [-1.0, -0.3, 0.01, 0.77, 1.0])
def test_a_count_is_a_whole_number_within_its_bounds(output: float) -> None:
    bounds = BlueprintParameterBounds(min_value=1.5, max_value=4.2, whole=True)
    value = kernel_parameters(BlueprintDescriptor(allowed_parameters={"rank": bounds}), None, (output,))["rank"]
    assert value in {2.0, 3.0, 4.0}


def test_a_count_whose_bounds_hold_no_whole_number_is_left_to_the_kernel() -> None:
    bounds = BlueprintParameterBounds(min_value=1.2, max_value=1.8, whole=True)
    assert kernel_parameters(BlueprintDescriptor(allowed_parameters={"rank": bounds}), None, (0.0,)) == {}
