"""Partition leases: one owner at a time, and a fence that outlives every mistake."""

from __future__ import annotations

from consumers.lease import PartitionLease, lease_key


def lease(bus, owner: str, *, ttl_ms: int = 60_000) -> PartitionLease:
    return PartitionLease(bus, prefix="t", partition=0, owner=owner, ttl_ms=ttl_ms)


async def test_a_second_worker_does_not_get_a_held_lease(bus) -> None:
    assert await lease(bus, "a").acquire() is not None
    assert await lease(bus, "b").acquire() is None


async def test_every_new_owner_gets_a_token_of_its_own(bus) -> None:
    first = await lease(bus, "a").acquire()
    await lease(bus, "a").release()
    second = await lease(bus, "b").acquire()
    assert first is not None
    assert second is not None
    assert second.token != first.token
    assert await bus.get(second.key) == second.token.encode()
    assert second.key == first.key


async def test_a_new_owner_learns_who_owned_the_partition_before(bus) -> None:
    first = await lease(bus, "a").acquire()
    await lease(bus, "a").release()
    second = await lease(bus, "b").acquire()
    assert first is not None
    assert second is not None
    assert (first.previous, second.previous) == ("", first.token)
    await bus.flushall()
    third = await lease(bus, "b").acquire()
    assert third is not None
    assert third.previous == ""


async def test_an_expired_lease_can_be_taken(bus) -> None:
    await lease(bus, "a").acquire()
    await bus.delete(lease_key("t", 0))  # what expiry does
    assert await lease(bus, "b").acquire() is not None


async def test_renewing_prolongs_and_does_not_move_the_fence(bus) -> None:
    mine = lease(bus, "a")
    fence = await mine.acquire()
    assert fence is not None
    await bus.pexpire(lease_key("t", 0), 1_000)
    assert await mine.renew()
    assert await bus.pttl(lease_key("t", 0)) > 1_000
    assert await bus.get(fence.key) == fence.token.encode()


async def test_a_lost_lease_can_be_neither_renewed_nor_released(bus) -> None:
    mine, theirs = lease(bus, "a"), lease(bus, "b")
    await mine.acquire()
    await bus.delete(lease_key("t", 0))
    await theirs.acquire()
    assert not await mine.renew()
    await mine.release()
    assert await bus.get(lease_key("t", 0)) == b"b"
