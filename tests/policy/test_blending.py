"""Blending: the method among the allowed, the schedule in order, the mode as an operator asks for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.policy.blending import (
    BlendMode,
    BlendModeProfile,
    blend_mode_annotations,
    choose_blending,
    usable_methods,
)

LOGITS = np.array([1.0, 4.0, 3.0, 2.0], dtype=np.float32)


def schedule(start: float, end: float) -> np.ndarray:
    return np.array([start, end], dtype=np.float32)


@pytest.mark.parametrize(
    ("seed", "host", "usable"),
    [
        (None, None, (0, 1, 2, 3)),
        (["sigmoid", "linear"], None, (0, 3)),
        (None, ["cosine"], (1,)),
        (["linear"], ["cosine"], (0,)),
        ([], None, ()),
        ([], ["cosine"], ()),
        (["unheard_of"], None, ()),
    ],
)
def test_the_seeds_own_list_counts_before_the_hosts(seed, host, usable) -> None:
    assert usable_methods(seed, host) == usable


def test_the_preferred_usable_method_has_its_position_on_the_wire_as_index() -> None:
    blending = choose_blending(LOGITS, schedule(-1, 1), (0, 2, 3))
    assert (blending.method, blending.index) == ("warmup_hold", 2)


def test_equal_methods_are_settled_by_the_lower_index() -> None:
    assert choose_blending(np.zeros(4, dtype=np.float32), schedule(0, 0), (1, 3)).index == 1


def test_without_a_usable_method_the_default_is_named() -> None:
    assert choose_blending(LOGITS, schedule(0, 0), ()).method == "linear"


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_the_schedule_is_ordered_fractions(start, end) -> None:
    blending = choose_blending(LOGITS, schedule(start, end), (0,))
    assert 0.0 <= blending.start <= blending.end <= 1.0


def test_the_mode_is_not_announced_unless_enabled() -> None:
    assert blend_mode_annotations(BlendModeProfile(mode=BlendMode.CHANNEL)) == {}


@pytest.mark.parametrize(
    ("profile", "annotations"),
    [
        ({}, {"blend_mode": "CONVEX", "blend_mode_source": "heuristic"}),
        ({"mode": BlendMode.RESIDUAL}, {"blend_mode": "RESIDUAL", "blend_mode_source": "override"}),
        (
            {"mode": BlendMode.CONFIDENCE},
            {
                "blend_mode": "CONFIDENCE",
                "blend_mode_source": "override",
                "gate_k": "4.0000",
                "gate_tau": "0.2000",
                "alpha_lo": "0.0000",
                "alpha_hi": "1.0000",
            },
        ),
        (
            {"mode": BlendMode.CHANNEL, "channels": 3},
            {
                "blend_mode": "CHANNEL",
                "blend_mode_source": "override",
                "alpha_vec": "[0.0,0.0,0.0]",
                "alpha_vec_len": "3",
            },
        ),
    ],
)
def test_each_mode_carries_what_kasmina_reads(profile, annotations) -> None:
    assert blend_mode_annotations(BlendModeProfile(enabled=True, **profile)) == annotations


def test_the_longest_channel_vector_is_one_that_kasmina_reads_whole() -> None:
    vector = blend_mode_annotations(BlendModeProfile(enabled=True, mode=BlendMode.CHANNEL))["alpha_vec"]
    assert len(vector) <= 1024
    assert len(json.loads(vector)) == 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha_lo": 0.8, "alpha_hi": 0.2}, "alpha_lo 0.8 to alpha_hi 0.2"),
        ({"alpha_hi": 1.5}, "alpha_hi 1.5"),
        ({"gate_k": -1.0}, "gate_k -1.0"),
        ({"gate_tau": float("nan")}, "gate_tau nan"),
        ({"channels": 65}, "channels is 65"),
    ],
)
def test_a_mode_that_kasmina_would_not_take_is_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        BlendModeProfile(**given)
