"""Membership and the fair share: partitions are shared out evenly, and a change moves no more than it must."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.membership import Membership, PartitionShare, fair_share

MEMBERS = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)
PARTITIONS = st.integers(1, 64)


def membership(bus, worker: str, *, ttl_ms: int = 60_000, clock=lambda: 0.0) -> Membership:
    return Membership(bus, prefix="t", worker=worker, ttl_ms=ttl_ms, clock=clock)


@given(MEMBERS, PARTITIONS)
def test_shares_add_up_to_all_partitions_and_differ_by_at_most_one(members, partitions) -> None:
    shares = [fair_share(member, members, partitions) for member in members]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(MEMBERS, PARTITIONS)
def test_nobodys_share_grows_when_a_worker_joins(members, partitions) -> None:
    joined = [*members, "newcomer"]
    for member in members:
        assert fair_share(member, joined, partitions) <= fair_share(member, members, partitions)


def test_a_worker_that_is_not_a_member_holds_nothing() -> None:
    assert fair_share("stranger", ["a", "b"], 8) == 0


async def test_members_are_listed_by_seniority(bus) -> None:
    first, second = membership(bus, "z"), membership(bus, "a")
    await first.announce()
    await bus.zadd("t:workers", {"999999999999999:b": 9e15})  # joins long after both
    await second.announce()
    members = await first.announce()
    assert members == tuple(sorted([first.member, second.member, "999999999999999:b"]))
    assert members[-1] == "999999999999999:b"
    assert first.member in members[:2]


async def test_a_worker_that_leaves_is_gone_at_once(bus) -> None:
    first, second = membership(bus, "a"), membership(bus, "b")
    await first.announce()
    assert len(await second.announce()) == 2
    await first.leave()
    assert await second.announce() == (second.member,)


async def test_a_worker_that_is_silent_is_dropped_when_its_announcement_expires(bus) -> None:
    silent, alive = membership(bus, "a"), membership(bus, "b")
    await silent.announce()
    await bus.zadd("t:workers", {silent.member: 1})  # what the passing of its time does
    assert await alive.announce() == (alive.member,)


async def test_the_list_of_members_expires_with_the_last_of_them(bus) -> None:
    await membership(bus, "a", ttl_ms=5_000).announce()
    assert 0 < await bus.pttl("t:workers") <= 5_000


async def test_a_worker_keeps_its_seniority_in_a_redis_that_came_back_empty(bus) -> None:
    worker = membership(bus, "a")
    before = await worker.announce()
    await bus.flushall()
    assert await worker.announce() == before


async def test_members_that_an_emptied_redis_forgot_count_until_they_had_time_to_come_back(bus) -> None:
    now = [100.0]
    quick = membership(bus, "quick", ttl_ms=5_000, clock=lambda: now[0])
    slow = membership(bus, "slow", ttl_ms=5_000)
    await slow.announce()
    both = await quick.announce()
    await bus.flushall()
    assert await quick.announce() == both
    now[0] += 4.9
    assert await quick.announce() == both
    now[0] += 0.2
    assert await quick.announce() == (quick.member,)


def test_a_worker_takes_no_more_than_its_share() -> None:
    share = PartitionShare()
    assert not share.take(0)  # nothing before it knows its share
    share.allow(2)
    assert [share.take(number) for number in (0, 1, 2)] == [True, True, False]
    share.give_back(0)
    assert share.take(2)
    assert share.held == (1, 2)


def test_what_was_taken_last_is_given_back_first() -> None:
    share = PartitionShare()
    share.allow(3)
    for number in (4, 0, 2):
        share.take(number)
    share.allow(1)
    assert [number for number in (0, 2, 4) if share.surplus(number)] == [0, 2]


def settle(workers: dict[str, PartitionShare], partitions: int) -> int:
    """Let the workers trade partitions, one step each in turn, until nothing moves; return how many moved."""
    members, moved = sorted(workers), 0
    for member, share in workers.items():
        share.allow(fair_share(member, members, partitions))
    for _ in range(2 * partitions):
        before = {member: share.held for member, share in workers.items()}
        for share in workers.values():
            for number in [number for number in share.held if share.surplus(number)]:
                share.give_back(number)
                moved += 1
        for number in range(partitions):
            if not any(number in share.held for share in workers.values()):
                next((share for share in workers.values() if share.take(number)), None)
        if before == {member: share.held for member, share in workers.items()}:
            break
    return moved


@pytest.mark.parametrize(("partitions", "count"), [(1, 3), (4, 3), (8, 3), (16, 5), (7, 7)])
def test_joining_and_leaving_ends_with_every_partition_held_once_and_fairly(partitions, count) -> None:
    workers = {"w0": PartitionShare()}
    settle(workers, partitions)
    for number in range(1, count):
        workers[f"w{number}"] = PartitionShare()
        moved = settle(workers, partitions)
        assert moved == len(workers[f"w{number}"].held)  # the newcomer's share and nothing else
    del workers["w0"]  # dies
    settle(workers, partitions)
    held = sorted(number for share in workers.values() for number in share.held)
    assert held == list(range(partitions))
    sizes = [len(share.held) for share in workers.values()]
    assert max(sizes) - min(sizes) <= 1
