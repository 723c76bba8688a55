"""The ACL file that ships: the worker lives under it, and each user may do its own work and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import redis
from anyio import to_thread
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from consumers.pending import PendingList
from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.check import run_checks
from tamiyo_stream.dead_letters import DeadLetters
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.settings import Settings, load_settings
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis
from tamiyo_stream.upstream.publisher import StreamPublisher
from tamiyo_stream.worker.connection import open_client
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.service import Stages, build_engine, serve
from tests.upstream.waiting import wait_until

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
USER_NAMES = ("tamiyo", "upstream", "simic", "operator")
PASSWORD = "a password of the tests"
KEYRING = Keyring({"k1": b"secret"})


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[EmbeddedRedis]:
    """A server under the shipped file, its users given a password as docs/security.md says."""
    directory = tmp_path_factory.mktemp("acl")
    lines = USERS.read_text(encoding="utf-8").splitlines()
    # A last user for the test itself, which has to look and to set passwords.
    lines.append("user observer on nopass ~* &* +@all")
    (directory / "users.acl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with EmbeddedRedis("--aclfile", str(directory / "users.acl")) as server:
        with as_user(server, "observer") as observer:
            for user in USER_NAMES:
                observer.execute_command("ACL SETUSER", user, f">{PASSWORD}")
        yield server


def url_of(server: EmbeddedRedis, user: str) -> str:
    return server.url.replace("redis://", f"redis://{user}:{PASSWORD.replace(' ', '%20')}@")


def as_user(server: EmbeddedRedis, user: str) -> redis.Redis:
    return redis.Redis.from_url(url_of(server, user))


@pytest.fixture
def settings(server: EmbeddedRedis, tmp_path) -> Settings:
    with as_user(server, "observer") as observer:
        observer.flushall()
    return load_settings(
        redis_url=server.url,
        redis_username="tamiyo",
        redis_password=PASSWORD,
        var_dir=tmp_path / "var",
        block_ms=20,
        signing_secret="secret",
        lease_ttl_ms=600,
    )


def packet(step: int, run_id: str = "run") -> SystemStatePacket:
    return SystemStatePacket(run_id=run_id, packet_id=f"p{step}", global_step=step, timestamp_ns=1)


async def test_a_worker_does_all_its_work_under_its_user(server, settings) -> None:
    """Deciding, refusing, taking over from a consumer that died, healing a group, housekeeping, draining."""
    key, commands = settings.key(Stream.STATE), settings.key(Stream.COMMANDS)
    stages = await to_thread.run_sync(
        lambda: Stages(
            Registries(settings.var_dir / "registries"),
            NormsKeeper(settings.var_dir / "norms.json"),
            build_engine(settings),
            open_client(settings),
            open_client(settings),
        )
    )
    stop = anyio.Event()
    with as_user(server, "observer") as observer:
        observer.xgroup_create(key, settings.group, id="0", mkstream=True)
        observer.xadd(key, encode_entry(packet(1), KEYRING))
        observer.xreadgroup(settings.group, "dead", {key: ">"})

        async def until(count: int, stream: str) -> None:
            with anyio.fail_after(30):
                while observer.xlen(stream) < count:  # noqa: ASYNC110 - it grows in another process
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(serve, settings, stages, stop)
            await until(1, commands)  # taken over
            observer.xgroup_destroy(key, settings.group)
            observer.xadd(key, encode_entry(packet(2), KEYRING))
            await until(2, commands)  # healed
            observer.xadd(key, {"not": "an entry"})
            observer.xadd(settings.key(Stream.BLUEPRINTS), {"not": "an entry"})
            await until(2, settings.key(Stream.DEAD_LETTER))
            stop.set()
        assert observer.xpending(key, settings.group)["pending"] == 0
        denied = [line for line in observer.acl_log() if line["username"] == "tamiyo"]
        # CLIENT SETINFO is a courtesy of the driver, which goes on without it.
        assert [line for line in denied if line["object"] not in {"client", "client|setinfo"}] == []


async def test_the_reader_and_the_housekeeping_have_every_command_they_use(server, settings) -> None:
    async with open_client(settings) as client:
        await client.xgroup_create("oona.tolaria.state", "g", id="0", mkstream=True)
        for _ in range(3):
            await client.xadd("oona.tolaria.state", {"x": "1"})
        await client.xreadgroup("g", "gone", {"oona.tolaria.state": ">"}, count=1)
        pending = PendingList(client, "oona.tolaria.state", "g")
        (entry, *_) = await pending.page("0", 10)
        assert await pending.take([entry.entry_id], "me", idle_ms=0) == {entry.entry_id}
        assert len(await pending.fields([entry.entry_id])) == 1
        await pending.count_attempts({entry.entry_id: 2}, "me")
        assert await pending.reap(idle_ms=0, survivor="me") == ("gone",)
        await client.xtrim("oona.tolaria.state", minid="0-1")


def test_an_upstream_publishes_states_and_reads_commands(server, settings) -> None:
    url = url_of(server, "upstream")
    with StreamPublisher(url, KEYRING) as publisher, CommandInbox(url, "run", KEYRING):
        assert publisher.publish(Stream.STATE, packet(1))
        wait_until(lambda: publisher.statistics().published == 1, "the state is published")


def test_an_operator_checks_lists_replays_and_purges(server, settings) -> None:
    letter = {b"x": b"1", b"dead_letter_reason": b"r", b"dead_letter_stream": b"oona.tolaria.state"}
    with as_user(server, "operator") as client:
        client.xadd("oona.deadletter", letter)
        client.xadd("oona.deadletter", letter)
        letters = DeadLetters(client, "oona.deadletter", {"oona.tolaria.state"})
        first, second = list(letters)
        assert letters.replay(first)
        assert letters.purge([second]) == 1
    operator = settings.model_copy(update={"redis_username": "operator"})
    assert run_checks(operator) == 0


FORBIDDEN = [
    *[(user, command) for user in USER_NAMES for command in (
        "FLUSHALL", "KEYS *", "CONFIG GET *", "EVAL return 0", "DEBUG SLEEP 0", "ACL LIST", "SHUTDOWN NOSAVE",
        "SCRIPT LOAD x", "MONITOR", "CLIENT LIST", "SUBSCRIBE c", "PUBLISH c m", "REPLICAOF NO ONE", "SAVE",
    )],
    ("tamiyo", "GET another:program"),
    ("tamiyo", "DEL another:program"),
    ("tamiyo", "XDEL oona.tolaria.state 1-1"),
    ("upstream", "GET tamiyo:lease:{0}"),
    ("upstream", "XADD oona.policy * a 1"),
    ("upstream", "XADD oona.deadletter * a 1"),
    ("upstream", "DEL oona.tolaria.state"),
    ("upstream", "XTRIM oona.tolaria.state MAXLEN 0"),
    ("simic", "XADD oona.tolaria.state * a 1"),
    ("operator", "SET tamiyo:lease:{0} me"),
    ("operator", "DEL oona.tolaria.state"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "command"), FORBIDDEN)
def test_what_a_user_does_not_need_it_may_not_do(server, user, command) -> None:
    with as_user(server, user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split(" "))


def test_the_file_as_it_ships_lets_nobody_in() -> None:
    """Its users have no password until an operator gives them one; the default user is off."""
    with EmbeddedRedis("--aclfile", str(USERS)) as server:
        for credentials in ({}, *({"username": user, "password": "guess"} for user in ("default", *USER_NAMES))):
            client = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0), **credentials)
            with client, pytest.raises(AuthenticationError):
                client.ping()
