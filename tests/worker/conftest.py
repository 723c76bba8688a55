"""A whole worker in this process, on the real server, and an upstream that speaks its wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from anyio import to_thread
from blockbuster import blockbuster_ctx
from redis.asyncio import Redis

from schemas.catalogue import Stream
from schemas.entry import Entry, decode_entry, encode_entry
from schemas.record import Message
from schemas.tamiyo import AdaptationCommand
from schemas.telemetry import TelemetryPacket
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.settings import Settings, load_settings
from tamiyo_stream.worker.connection import open_client
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.service import NORMS_FILE, Stages, build_engine, serve

PATIENCE_S = 30.0
SECRET = "a secret of the tests"


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    """Fail a test whose worker makes a blocking call in the event loop."""
    with blockbuster_ctx(scanned_modules=["consumers", "producers", "tamiyo_stream"]):
        yield


@pytest.fixture(scope="session")
def engine():
    """The network once for all tests: building it takes a second."""
    built = build_engine(Settings())
    built.warm_up()
    return built


@dataclass
class Upstream:
    """Publishes and reads back, as other services would."""

    bus: Redis
    settings: Settings

    async def publish(self, stream: Stream, message: Message, *, event_id: str | None = None) -> str:
        fields = encode_entry(message, self.settings.keyring, event_id=event_id)
        return (await self.bus.xadd(self.settings.key(stream), fields)).decode()

    async def step(self, step: int, *, run_id: str = "run", event_id: str | None = None, **fields) -> str:
        packet = SystemStatePacket(
            run_id=run_id,
            packet_id=f"{run_id}-{step}",
            global_step=step,
            timestamp_ns=fields.pop("timestamp_ns", step),
            **{"training_loss": 2.0, **fields},
        )
        return await self.publish(Stream.STATE, packet, event_id=event_id)

    async def entries(self, stream: Stream) -> list[Entry]:
        found = await self.bus.xrange(self.settings.key(stream))
        return [decode_entry(fields, self.settings.keyring) for _, fields in found]

    async def commands(self) -> list[AdaptationCommand]:
        return [e.message for e in await self.entries(Stream.COMMANDS) if isinstance(e.message, AdaptationCommand)]

    async def telemetry(self) -> list[TelemetryPacket]:
        return [e.message for e in await self.entries(Stream.TELEMETRY) if isinstance(e.message, TelemetryPacket)]

    async def dead_letters(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in await self.bus.xrange(self.settings.key(Stream.DEAD_LETTER))]

    async def pending(self, stream: Stream = Stream.STATE) -> int:
        return int((await self.bus.xpending(self.settings.key(stream), self.settings.group))["pending"])

    async def until(self, condition: Callable[[], Awaitable[object]], description: str) -> None:
        """Wait until ``condition`` holds; fail with ``description`` when patience ends."""
        with anyio.move_on_after(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110 - what is awaited lies in another process
                await anyio.sleep(0.01)
            return
        pytest.fail(f"still waiting until {description}")

    async def decided(self, count: int) -> list[AdaptationCommand]:
        """Return the commands as soon as there are ``count``."""

        async def enough() -> bool:
            return len(await self.commands()) >= count

        await self.until(enough, f"{count} commands are published")
        return await self.commands()


@pytest.fixture
def settings(redis_url: str, tmp_path) -> Settings:
    return load_settings(
        redis_url=redis_url,
        var_dir=tmp_path / "var",
        block_ms=20,
        signing_secret=SECRET,
        lease_ttl_ms=3000,
        web_port=0,
        decision_deadline_ms=20_000,  # the machine may be busy: what is late is a test of its own
    )


@pytest.fixture
async def upstream(settings: Settings) -> AsyncIterator[Upstream]:
    async with Redis.from_url(settings.redis_url) as bus:
        yield Upstream(bus, settings)


@pytest.fixture
def worker(settings: Settings, engine):
    """Context manager that runs a worker; leaving it drains."""

    @asynccontextmanager
    async def run(*, worker_id: str = "w1", engine=engine, **changes) -> AsyncIterator[anyio.Event]:
        mine = settings.model_copy(update={"worker_id": worker_id, **changes})
        registries = await to_thread.run_sync(Registries, mine.var_dir / "registries")
        norms = await to_thread.run_sync(NormsKeeper, mine.var_dir / NORMS_FILE)
        stages = Stages(registries, norms, engine, open_client(mine), open_client(mine))
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(serve, mine, stages, stop)
            try:
                yield stop
            finally:
                stop.set()

    return run
