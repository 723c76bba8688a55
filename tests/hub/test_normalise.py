"""One spelling for what upstream reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.hub.normalise import UNITS, spell


@pytest.mark.parametrize(
    ("source", "name", "unit", "expected"),
    [
        ("tolaria", "tolaria.training.latency_ms", "ms", ("tolaria.training.latency_ms", "ms", 1.0)),
        ("tolaria", "training.latency_s", "s", ("tolaria.training.latency_ms", "ms", 1e3)),
        ("tolaria", "hook.latency_seconds", "seconds", ("tolaria.hook.latency_ms", "ms", 1e3)),
        ("tolaria", "gpu_util_percent", "%", ("tolaria.gpu_util_ratio", "ratio", 1e-2)),
        ("kasmina", "Kasmina/Seeds Active", "count", ("kasmina.seeds.active", "count", 1.0)),
        ("kasmina", "kasmina.seed.kernel_attached", "flag", ("kasmina.seed.kernel_attached", "bool", 1.0)),
        ("kasmina", "cache.gpu_size_mb", "MB", ("kasmina.cache.gpu_size_bytes", "bytes", 1e6)),
        ("tolaria", "tolaria.training.loss", "loss", ("tolaria.training.loss", "loss", 1.0)),
        ("tolaria", "items_s", "count", ("tolaria.items_s", "count", 1.0)),
    ],
)
def test_names_get_their_sources_prefix_and_units_one_form(source, name, unit, expected) -> None:
    found = spell(source, name, unit)
    assert (found.name, found.unit, found.factor) == expected


@given(
    st.sampled_from(["tolaria", "kasmina"]), st.text(min_size=1, max_size=40), st.sampled_from(["", "ms", *UNITS])
)
def test_a_spelling_is_stable(source: str, name: str, unit: str) -> None:
    once = spell(source, name, unit)
    again = spell(source, once.name, once.unit)
    assert (again.name, again.unit, again.factor) == (once.name, once.unit, 1.0)
