"""What a decision says about its grounds."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.policy.why import TOP_NODES, _top, compact_json, ratios_json


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9]), max_size=12))
def test_the_top_nodes_are_those_of_a_full_stable_sort(shares: list[float]) -> None:
    attention = np.array(shares, dtype=np.float32)
    names = [f"n{position}" for position in range(len(shares))]
    expected = [i for i in np.argsort(-attention, kind="stable")[:TOP_NODES] if attention[i] > 0]
    assert list(_top(names, attention).items()) == [(names[i], float(attention[i])) for i in expected]


@given(st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=5))
def test_the_fast_form_of_a_map_of_ratios_is_the_general_one(ratios: dict[str, float]) -> None:
    assert ratios_json(ratios) == compact_json(ratios)
    assert json.loads(ratios_json(ratios)) == {key: round(value, 4) for key, value in ratios.items()}
