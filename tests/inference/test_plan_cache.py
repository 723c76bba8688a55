"""Plans are built once per structure, merged for batches, and kept within a bound; also from several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.graph.structures import Topology
from tamiyo_stream.inference import plan_cache
from tamiyo_stream.inference.plan_cache import PlanCache
from tests.model.samples import random_step_graph

TOPOLOGIES = [random_step_graph(seed, layers=3).topology for seed in range(6)]
NAMES = {topology.structure_hash: str(number) for number, topology in enumerate(TOPOLOGIES)}


class Workshop:
    """Builds plans that are the names of their topologies, and counts."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.cache: PlanCache[str] = PlanCache(self.build)

    def build(self, topologies: Sequence[Topology]) -> str:
        self.built.append("+".join(NAMES[topology.structure_hash] for topology in topologies))
        return self.built[-1]

    def plan(self, *numbers: int) -> str | None:
        return self.cache.plan_together([TOPOLOGIES[number] for number in numbers])


def test_a_prepared_plan_is_a_hit() -> None:
    shop = Workshop()
    shop.cache.prepare(TOPOLOGIES[0])
    shop.cache.prepare(TOPOLOGIES[0])
    assert TOPOLOGIES[0] in shop.cache
    assert shop.plan(0) == "0"
    now = shop.cache.statistics()
    assert (now.prepared, now.hits, now.misses, now.built_late, now.plans) == (1, 1, 0, 0, 1)
    assert now.edges == TOPOLOGIES[0].num_edges


def test_a_plan_nobody_prepared_is_built_once_and_counted_as_late() -> None:
    shop = Workshop()
    assert [shop.plan(0), shop.plan(0)] == ["0", "0"]
    assert shop.built == ["0"]
    now = shop.cache.statistics()
    assert (now.built_late, now.hits, now.misses) == (1, 1, 1)


def test_a_new_combination_of_small_graphs_gets_its_plan_at_once() -> None:
    shop = Workshop()
    assert [shop.plan(0, 1), shop.plan(0, 1)] == ["0+1", "0+1"]
    assert shop.built == ["0+1"]
    assert not shop.cache.wants
    now = shop.cache.statistics()
    assert (now.hits, now.misses, now.built_at_once, now.prepared) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("graphs", "edges", "at_once"), [(2, 25_000, True), (2, 25_001, False), (4, 125_000, True)]
)
def test_whether_a_plan_is_built_at_once_depends_on_edges_per_graph_saved(
    monkeypatch, graphs, edges, at_once
) -> None:
    each = TOPOLOGIES[0].num_edges
    monkeypatch.setattr(plan_cache, "EDGES_PER_FORWARD", 50_000 * graphs * each / edges)
    assert (Workshop().plan(*[0] * graphs) is not None) is at_once


@pytest.fixture
def _large(monkeypatch) -> None:
    """The graphs count as too large for a plan at once."""
    monkeypatch.setattr(plan_cache, "EDGES_PER_FORWARD", 1)


@pytest.mark.usefixtures("_large")
def test_a_new_combination_of_large_graphs_has_no_plan_until_it_is_prepared() -> None:
    shop = Workshop()
    assert [shop.plan(0, 1), shop.plan(0, 1)] == [None, None]
    assert shop.cache.wants
    assert shop.built == []
    shop.cache.prepare_combinations()
    assert not shop.cache.wants
    assert [shop.plan(0, 1), shop.plan(1, 0)] == ["0+1", None]
    assert shop.built == ["0+1"]
    now = shop.cache.statistics()
    assert (now.hits, now.misses, now.prepared, now.built_at_once, now.built_late) == (1, 3, 1, 0, 0)


@pytest.mark.usefixtures("_large")
def test_combinations_noted_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_WANTED", 2)
    shop = Workshop()
    for second in range(4):
        shop.plan(0, second)
    shop.cache.prepare_combinations()
    assert shop.built == ["0+0", "0+1"]
    assert shop.plan(0, 3) is None
    assert shop.cache.wants


def test_the_least_recently_used_plan_leaves_when_there_are_too_many(monkeypatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_PLANS", 2)
    shop = Workshop()
    for number in (0, 1, 0, 2):
        shop.plan(number)
    assert [topology in shop.cache for topology in TOPOLOGIES[:3]] == [True, False, True]


def test_combinations_do_not_drive_out_the_plans_of_single_graphs(monkeypatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_PLANS", 2)
    shop = Workshop()
    shop.cache.prepare(TOPOLOGIES[0])
    for second in range(4):
        shop.plan(0, second)
    assert TOPOLOGIES[0] in shop.cache
    assert shop.cache.statistics().plans == 3


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=30))
def test_the_edges_kept_stay_within_the_bound_and_every_plan_is_right(batches) -> None:
    most = 3 * TOPOLOGIES[0].num_edges
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_cache, "MAX_EDGES", most)
        shop = Workshop()
        for batch in batches:
            assert shop.plan(*batch) == "+".join(map(str, batch))
            assert shop.cache.statistics().edges <= 2 * most


def test_one_plan_over_the_bound_is_kept_for_the_next_step(monkeypatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_EDGES", 1)
    shop = Workshop()
    assert [shop.plan(0), shop.plan(0)] == ["0", "0"]
    assert shop.built == ["0"]


def test_threads_may_prepare_while_another_asks() -> None:
    shop = Workshop()
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait(10)
        for topology in TOPOLOGIES:
            shop.cache.prepare(topology)
        assert shop.plan(number, number) == f"{number}+{number}"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [shop.plan(number, number) for number in range(4)] == ["0+0", "1+1", "2+2", "3+3"]
    assert shop.cache.statistics().edges == sum(t.num_edges for t in TOPOLOGIES) + sum(
        2 * TOPOLOGIES[number].num_edges for number in range(4)
    )
