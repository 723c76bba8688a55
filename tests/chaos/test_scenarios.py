"""Small editions of the chaos scenarios (the long ones: ``python -m tests.chaos``), on one rig and one seed.

Every scenario proves from the streams alone that each published step has one command or one recorded refusal,
that nothing is pending or unread, and that the runs' states are those of a run without faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.rig import Rig
from tests.chaos.scenarios import SCENARIOS, Result, run_scenario

SEED = 7
#: Faults per scenario; the others get two.
SIZES = {"kills": 5, "network": 1, "joins_and_leaves": 1, "clock_jumps": 1, "poison": 1}


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> Iterator[Rig]:
    """One Redis and one nursery for all scenarios."""
    with Rig(tmp_path_factory.mktemp("chaos")) as rig:
        yield rig


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_or_doubled(rig, name) -> None:
    result = run_scenario(rig, name, SEED, SIZES.get(name, 2))
    assert result.holds, result
    assert result.published > 0
    assert result.decided + result.superseded + result.refused >= result.published


def test_a_loss_would_be_seen() -> None:
    """The verdict itself: one lost, one doubled, one differing run each fail it."""
    good = Result("kills", 1, 10, 8, 2, 0, 0, 0, 0, 0.0)
    assert good.holds
    for flaw in ({"lost": 1}, {"doubled": 1}, {"state_differs": ("run0",)}, {"failure": "not settled"}):
        assert not Result(**{**{name: getattr(good, name) for name in good.__slots__}, **flaw}).holds
