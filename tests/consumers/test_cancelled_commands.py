"""A command that is cancelled leaves no reply behind for the next caller of its connection."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

CANCELS = 2_000
SEED = 20_240_607


@pytest.fixture
async def client(redis_url):
    """As the worker opens its own: one pool, no retries."""
    async with Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), max_connections=4) as client:
        yield client


async def echo(client: Redis, tag: str) -> None:
    """One plain command that must be answered with its own tag."""
    assert await client.echo(tag) == tag.encode()


async def transaction(client: Redis, tag: str) -> None:
    """WATCH, read, MULTI, EXEC, as a commit does; every reply must be that of its command."""
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("watched")
        assert await pipe.get("watched") == b"unchanged"
        pipe.multi()
        pipe.echo(tag)
        pipe.hset("state", mapping={"tag": tag})
        pipe.echo(f"{tag}!")
        first, _, last = await pipe.execute()
    assert (first, last) == (tag.encode(), f"{tag}!".encode())


async def blocking_read(client: Redis, tag: str) -> None:
    """A read that waits; its stream holds exactly one entry, named after it."""
    stream = f"stream-{int(tag) % 7}"
    reply = await client.xread({stream: "0"}, block=1)
    entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
    assert [fields for _, fields in entries] == [{b"name": stream.encode()}]


#: Turns of the event loop within which a command of several replies has been answered.
TURNS = 14
#: A single quick command is answered before it can be cancelled: these wait, or take several round trips.
COMMANDS = [transaction, blocking_read]


@pytest.mark.parametrize("command", COMMANDS)
async def test_no_reply_crosses_to_another_caller(client, command) -> None:
    await client.set("watched", "unchanged")
    for number in range(7):
        await client.xadd(f"stream-{number}", {"name": f"stream-{number}"})
    dice, cancelled = random.Random(SEED), 0
    for number in range(CANCELS // len(COMMANDS)):
        task = asyncio.ensure_future(command(client, str(number)))
        for _ in range(1 + dice.randrange(TURNS)):  # somewhere between taking a connection and giving it back
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        await echo(client, f"after {number}")  # on the connection that the cancelled one gave back
        cancelled += task.cancelled()
    # What a read asks for is there: on a fast or a busy machine it may be answered before any cancellation.
    assert cancelled > 0 or command is blocking_read


async def test_callers_beside_a_cancelled_one_get_their_own_replies(client) -> None:
    await client.set("watched", "unchanged")
    dice = random.Random(SEED)
    for number in range(CANCELS // 20):
        chosen = [dice.choice((echo, transaction)) for _ in range(4)]
        tasks = [asyncio.ensure_future(call(client, f"{number}-{place}")) for place, call in enumerate(chosen)]
        for _ in range(dice.randrange(20)):
            await asyncio.sleep(0)
        tasks[dice.randrange(4)].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [error for error in outcomes if error and not isinstance(error, asyncio.CancelledError)] == []
