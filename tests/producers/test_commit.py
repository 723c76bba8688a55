"""The atomic commit: all or nothing, once, and only by the partition's owner."""

from __future__ import annotations

import pytest

from producers.commit import Acknowledgement, Commit, Committer, FenceLost, Output, SavedState

FENCE = "t:fence:{0}"


async def pending(bus, key: str = "in") -> int:
    return int((await bus.xpending(key, "g"))["pending"])


async def claimed_entry(bus) -> str:
    """Put one entry on ``in`` and claim it for group ``g``."""
    entry_id = await bus.xadd("in", {"x": "1"})
    await bus.xgroup_create("in", "g", id="0")
    await bus.xreadgroup("g", "c", {"in": ">"})
    return entry_id.decode()


def a_commit(entry_id: str, **changes) -> Commit:
    given = {
        "commit_id": "one",
        "outputs": [Output("out", {b"x": b"1"}, 100), Output("more", {b"y": b"2"}, 100)],
        "state": SavedState("t:run:{0}:r", b"state", 600),
        "acknowledgements": [Acknowledgement("in", "g", (entry_id,))],
        "fence_key": FENCE,
        "fence_token": "mine",
    }
    return Commit(**{**given, **changes})


async def test_a_commit_publishes_saves_and_acknowledges(bus) -> None:
    entry_id = await claimed_entry(bus)
    await bus.set(FENCE, "mine")
    assert await Committer(bus).commit(a_commit(entry_id))
    assert [fields for _, fields in await bus.xrange("out")] == [{b"x": b"1"}]
    assert [fields for _, fields in await bus.xrange("more")] == [{b"y": b"2"}]
    assert await Committer(bus).load_state("t:run:{0}:r") == b"state"
    assert 0 < await bus.ttl("t:run:{0}:r") <= 600
    assert await pending(bus) == 0


async def test_a_worker_that_lost_its_fence_changes_nothing(bus) -> None:
    entry_id = await claimed_entry(bus)
    await bus.set(FENCE, "theirs")
    with pytest.raises(FenceLost):
        await Committer(bus).commit(a_commit(entry_id))
    assert await bus.exists("out", "more", "t:run:{0}:r") == 0
    assert await pending(bus) == 1


async def test_a_retry_of_a_commit_whose_reply_was_lost_does_nothing(bus) -> None:
    entry_id = await claimed_entry(bus)
    await bus.set(FENCE, "mine")
    commit = a_commit(entry_id)
    assert await Committer(bus).commit(commit)
    assert not await Committer(bus).commit(commit)
    assert await bus.xlen("out") == 1


async def test_the_fence_moving_between_check_and_exec_aborts_the_commit(bus, monkeypatch) -> None:
    entry_id = await claimed_entry(bus)
    await bus.set(FENCE, "mine")
    committer = Committer(bus)
    check = committer._happened

    async def check_then_lose_the_lease(pipe, commit):
        result = await check(pipe, commit)
        await bus.set(FENCE, "theirs")
        return result

    monkeypatch.setattr(committer, "_happened", check_then_lose_the_lease)
    with pytest.raises(FenceLost):
        await committer.commit(a_commit(entry_id))
    assert await bus.exists("out", "t:run:{0}:r") == 0
    assert await pending(bus) == 1


async def test_a_once_key_makes_a_commit_without_state_happen_once(bus) -> None:
    outputs = [Output("dead", {b"x": b"1"}, 100)]
    for commit_id in ("one", "two"):
        await Committer(bus).commit(Commit(commit_id, outputs, once_key="t:refused:1"))
    assert await bus.xlen("dead") == 1
    assert await bus.ttl("t:refused:1") > 0


async def test_an_unknown_run_has_no_state(bus) -> None:
    assert await Committer(bus).load_state("t:run:{0}:nobody") is None
