"""The scheduling core: what is admitted ends once, batches keep their budget, the earliest deadline goes first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tamiyo_stream.inference.micro_batcher import (
    PATIENCE_S,
    BatchBudget,
    DeadlineMissed,
    Entry,
    GraphTooLarge,
    MicroBatcher,
    QueueFull,
)

BUDGET = BatchBudget(graphs=4, nodes=100, edges=1000)


def batcher_of(**options) -> MicroBatcher[str]:
    return MicroBatcher(BUDGET, **options)


def admit(batcher: MicroBatcher[str], *names: str, now: float = 0.0, **options) -> list[Entry[str]]:
    return [batcher.admit(name, now=now, **{"nodes": 1, "edges": 1, **options}) for name in names]


def names(entries) -> list[str]:
    return [entry.item for entry in entries]


def take(batcher: MicroBatcher[str], now: float = 0.0) -> list[str]:
    return names(batcher.take(now).batch)


def test_what_waits_is_taken_together() -> None:
    batcher = batcher_of()
    admit(batcher, "a", "b", "c")
    assert take(batcher) == ["a", "b", "c"]
    assert take(batcher) == []


def test_the_earliest_deadline_goes_first_and_equal_ones_in_order_of_arrival() -> None:
    batcher = batcher_of()
    for name, deadline in (("late", 9.0), ("soon", 2.0), ("also soon", 2.0), ("first", 1.0)):
        admit(batcher, name, deadline=deadline)
    assert take(batcher) == ["first", "soon", "also soon", "late"]


def test_without_deadline_an_item_is_overtaken_for_its_patience_only() -> None:
    batcher = batcher_of()
    admit(batcher, "patient")
    admit(batcher, "urgent", deadline=PATIENCE_S / 2)
    admit(batcher, "later", deadline=PATIENCE_S * 2)
    assert take(batcher) == ["urgent", "patient", "later"]


@pytest.mark.parametrize(("size", "expected"), [({"nodes": 50}, 2), ({"edges": 400}, 2), ({"nodes": 1}, 4)])
def test_a_batch_keeps_each_of_its_budgets(size, expected) -> None:
    batcher = batcher_of()
    admit(batcher, *"abcdef", **size)
    assert len(take(batcher)) == expected


def test_nothing_overtakes_an_item_that_does_not_fit_the_rest_of_a_batch() -> None:
    batcher = batcher_of()
    admit(batcher, "small", deadline=1.0)
    admit(batcher, "large", nodes=100, deadline=2.0)
    admit(batcher, "small too", deadline=3.0)
    assert take(batcher) == ["small"]
    assert take(batcher) == ["large"]
    assert take(batcher) == ["small too"]


@pytest.mark.parametrize(("nodes", "edges"), [(101, 1), (1, 1001)])
def test_an_item_over_the_whole_budget_is_refused_with_its_size(nodes, edges) -> None:
    batcher = batcher_of()
    with pytest.raises(
        GraphTooLarge, match=f"{nodes} nodes and {edges} edges, a batch holds 100 and 1000"
    ) as caught:
        admit(batcher, "huge", nodes=nodes, edges=edges)
    assert (caught.value.nodes, caught.value.edges, caught.value.limit) == (nodes, edges, BUDGET)
    assert batcher.statistics().refused_oversize == 1
    assert batcher.due(0.0) is None


def test_an_item_of_exactly_the_budget_is_served() -> None:
    batcher = batcher_of()
    admit(batcher, "full", nodes=100, edges=1000)
    assert take(batcher) == ["full"]


def test_the_queue_is_bounded_and_says_so() -> None:
    batcher = batcher_of(max_queued=2)
    admit(batcher, "a", "b")
    with pytest.raises(QueueFull, match="2 graphs are waiting"):
        admit(batcher, "c")
    assert batcher.statistics().refused_full == 1
    take(batcher)
    admit(batcher, "c")


def test_an_item_that_is_late_already_is_not_admitted() -> None:
    batcher = batcher_of()
    with pytest.raises(DeadlineMissed, match=r"500\.0 ms ago"):
        admit(batcher, "late", now=1.5, deadline=1.0)
    assert batcher.statistics().missed == 1


def test_what_is_late_when_its_turn_comes_is_missed_and_not_evaluated() -> None:
    batcher = batcher_of()
    admit(batcher, "late", deadline=1.0)
    admit(batcher, "in time", deadline=3.0)
    taken = batcher.take(1.0)
    assert (names(taken.missed), names(taken.batch)) == (["late"], ["in time"])
    assert batcher.statistics().missed == 1


def test_a_batch_waits_for_company_for_the_queue_delay_of_its_first() -> None:
    batcher = batcher_of(queue_delay_s=0.5)
    admit(batcher, "first", now=1.0)
    admit(batcher, "company", now=1.4)
    assert batcher.due(1.4) == 1.5
    assert take(batcher, 1.49) == []
    assert take(batcher, 1.5) == ["first", "company"]


def test_a_full_batch_waits_for_nobody() -> None:
    batcher = batcher_of(queue_delay_s=0.5)
    admit(batcher, *"abcd", now=1.0)
    assert take(batcher, 1.0) == ["a", "b", "c", "d"]


def test_a_near_deadline_ends_the_wait_for_company_in_time_for_a_forward() -> None:
    batcher = batcher_of(queue_delay_s=0.5)
    admit(batcher, "before")
    batcher.finish(batcher.take(1.0).batch, forward_ms=100.0)
    admit(batcher, "urgent", now=1.0, deadline=1.25)
    assert batcher.due(1.0) == pytest.approx(1.15)
    assert take(batcher, 1.16) == ["urgent"]


def test_a_batch_does_not_grow_so_long_that_its_first_misses_its_deadline() -> None:
    batcher = batcher_of()
    for count in (1, 3):  # a forward takes 10 ms and 10 ms per graph
        admit(batcher, *"abc"[:count])
        batcher.finish(batcher.take(0.0).batch, forward_ms=10.0 + 10.0 * count)
    admit(batcher, *"abcd", deadline=0.035)
    assert take(batcher) == ["a", "b"]
    assert take(batcher, 0.03) == ["c", "d"]  # cannot be met, not even alone


def test_what_has_no_deadline_does_not_limit_a_batch() -> None:
    batcher = batcher_of()
    admit(batcher, "a")
    batcher.finish(batcher.take(0.0).batch, forward_ms=9999.0)
    admit(batcher, *"abcd")
    assert take(batcher) == ["a", "b", "c", "d"]


def test_a_failed_batch_comes_back_in_halves_before_what_waits() -> None:
    batcher = batcher_of()
    admit(batcher, *"abcd")
    batch = batcher.take(0.0).batch
    admit(batcher, "urgent", deadline=0.1)
    assert batcher.fail(batch) is None
    left = batcher.take(0.0).batch
    assert names(left) == ["a", "b"]
    batcher.finish(left, forward_ms=1.0)
    assert take(batcher) == ["c", "d"]
    assert take(batcher) == ["urgent"]
    assert batcher.statistics().splits == 1


def test_an_item_that_fails_alone_is_poison() -> None:
    batcher = batcher_of()
    (entry,) = admit(batcher, "poison")
    assert batcher.fail(batcher.take(0.0).batch) is entry
    assert (batcher.statistics().poison, batcher.statistics().splits) == (1, 0)
    assert batcher.due(0.0) is None


def test_halves_leave_out_who_is_gone_or_late() -> None:
    batcher = batcher_of()
    gone, _ = admit(batcher, "gone", "stays")
    admit(batcher, "late", "late too", deadline=1.0)
    batch = batcher.take(0.0).batch
    batcher.withdraw(gone)
    batcher.fail(batch)
    taken = batcher.take(1.0)
    assert sorted(names(taken.missed)) == ["late", "late too"]
    assert names(taken.batch) == ["stays"]


def test_a_withdrawn_item_is_not_evaluated_and_withdrawing_again_changes_nothing() -> None:
    batcher = batcher_of()
    gone, _ = admit(batcher, "gone", "stays")
    for _ in range(2):
        batcher.withdraw(gone)
    assert take(batcher) == ["stays"]
    assert batcher.statistics().withdrawn == 1


def test_a_half_that_everybody_left_is_not_handed_out() -> None:
    batcher = batcher_of()
    first, second, _ = admit(batcher, *"abc")
    batcher.fail(batcher.take(0.0).batch)
    for gone in (first, second):
        batcher.withdraw(gone)
    assert take(batcher) == ["c"]
    assert batcher.due(0.0) is None


def test_drain_empties_the_queue_and_the_halves() -> None:
    batcher = batcher_of()
    admit(batcher, *"ab")
    batcher.fail(batcher.take(0.0).batch)
    admit(batcher, "c")
    assert sorted(names(batcher.drain())) == ["a", "b", "c"]
    assert batcher.due(0.0) is None


def test_statistics_tell_batches_and_forward_times() -> None:
    batcher = batcher_of()
    for forward_ms, items in ((10.0, "ab"), (20.0, "abcd")):
        admit(batcher, *items)
        batcher.finish(batcher.take(0.0).batch, forward_ms=forward_ms, poison=1)
    admit(batcher, *"abcde")
    batcher.take(0.0)
    now = batcher.statistics()
    assert (now.queued, now.running, now.batches, now.graphs, now.poison) == (1, 4, 2, 4, 2)
    assert (now.mean_batch, now.last_batch) == (3.0, 4)
    assert (now.forward_p50_ms, now.forward_p95_ms) == (10.0, 20.0)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 600), st.none() | st.floats(0.1, 9)), max_size=30))
def test_batches_keep_the_budget_and_the_order_of_deadlines(items) -> None:
    batcher: MicroBatcher[int] = MicroBatcher(BUDGET)
    for number, (nodes, edges, deadline) in enumerate(items):
        batcher.admit(number, nodes=nodes, edges=edges, now=0.0, deadline=deadline)
    served: list[Entry[int]] = []
    while batch := batcher.take(0.0).batch:
        assert len(batch) <= BUDGET.graphs
        assert sum(entry.nodes for entry in batch) <= BUDGET.nodes
        assert sum(entry.edges for entry in batch) <= BUDGET.edges
        batcher.finish(batch, forward_ms=0.0)
        served += batch
    expected = sorted(range(len(items)), key=lambda n: (PATIENCE_S if items[n][2] is None else items[n][2], n))
    assert [entry.item for entry in served] == expected


@dataclass
class Ends:
    """How often each entry ended, by how."""

    counts: Counter[int] = field(default_factory=Counter)

    def end(self, entry: Entry[int]) -> None:
        self.counts[entry.item] += 1


class Batching(RuleBasedStateMachine):
    """Arrivals, clocks, failures, cancellations in any order: each admitted item ends once, and all end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.admitted: list[Entry[int]] = []
        self.running: tuple[Entry[int], ...] = ()
        self.ends = Ends()
        self.gone: set[int] = set()

    @initialize(delay=st.sampled_from([0.0, 0.5]))
    def start(self, delay: float) -> None:
        self.batcher: MicroBatcher[int] = MicroBatcher(BUDGET, queue_delay_s=delay, max_queued=8)

    @rule(nodes=st.integers(1, 110), patience=st.none() | st.floats(-0.1, 3))
    def arrive(self, nodes: int, patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        try:
            entry = self.batcher.admit(len(self.admitted), nodes=nodes, edges=1, now=self.now, deadline=deadline)
        except (GraphTooLarge, QueueFull, DeadlineMissed):
            return
        self.admitted.append(entry)

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.running)
    @rule()
    def serve(self) -> None:
        taken = self.batcher.take(self.now)
        for entry in taken.missed:
            self.ends.end(entry)
        assert not any(entry.late(self.now) for entry in taken.batch)
        assert len(taken.batch) <= BUDGET.graphs
        assert sum(entry.nodes for entry in taken.batch) <= BUDGET.nodes
        self.running = taken.batch

    @precondition(lambda self: self.running)
    @rule()
    def succeed(self) -> None:
        self.batcher.finish(self.running, forward_ms=1.0)
        self._answer(self.running)

    @precondition(lambda self: self.running)
    @rule()
    def fail(self) -> None:
        poison = self.batcher.fail(self.running)
        self._answer([] if poison is None else [poison])

    def _answer(self, entries) -> None:
        for entry in entries:
            if entry.item not in self.gone:
                self.ends.end(entry)
        self.running = ()

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        entry = data.draw(st.sampled_from(self.admitted))
        before = self.batcher.statistics().withdrawn
        self.batcher.withdraw(entry)
        if self.batcher.statistics().withdrawn > before:
            self.gone.add(entry.item)
            self.ends.end(entry)

    @invariant()
    def nothing_ends_twice(self) -> None:
        assert max(self.ends.counts.values(), default=0) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        if self.running:
            self.succeed()
        while self.batcher.due(self.now) is not None:
            self.now += 10
            self.serve()
            if self.running:
                self.succeed()
        assert self.ends.counts == Counter(range(len(self.admitted)))
        assert (self.batcher.statistics().queued, self.batcher.statistics().running) == (0, 0)


TestBatching = Batching.TestCase
