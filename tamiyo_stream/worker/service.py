"""The composition root: opens connections, builds the stages, runs them in one task group, drains on SIGTERM."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import anyio
import structlog
from redis.asyncio import Redis

from consumers.feed import TableFeed
from consumers.group import ConsumerGroup, GroupOptions
from consumers.lease import PartitionLease
from producers.commit import Committer
from schemas.partitions import ORDERED
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries, RegistryCorrupt
from tamiyo_stream.inference.device import DeviceUnavailable
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.micro_batcher import BatchBudget
from tamiyo_stream.inference.output import NonFiniteOutput
from tamiyo_stream.inference.self_test import NoProducts
from tamiyo_stream.inference.stage import InferenceStage
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import build_network
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import RedisUrlInvalid, open_client, through_outages
from tamiyo_stream.worker.flushing import PeriodicFlush
from tamiyo_stream.worker.logs import configure_logging
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.partition import Partition
from tamiyo_stream.worker.steps import StepProcessor
from tamiyo_stream.worker.tables import FEEDS, TableKeeper

NORMS_FILE = "gnn_norms.json"
#: SIGTERM: time to commit what is claimed before it is handed back to the group by dropping it.
DRAIN_TIMEOUT_S = 4.0

log = structlog.get_logger("tamiyo.worker")


class StartFailed(RuntimeError):
    """The worker cannot start; the text says what to do."""


def run_worker(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT.

    Raises:
        StartFailed: a damaged registry, an unknown device, an unusable Redis URL.
    """
    configure_logging(settings)
    log.info("configuration", **settings.redacted())
    if settings.keyring is None:
        log.warning("unsigned_bus", detail="no TAMIYO_SIGNING_SECRET: entries are neither verified nor signed")
    try:
        stages = build_stages(settings)
    except (RegistryCorrupt, DeviceUnavailable, NoProducts, NonFiniteOutput, RedisUrlInvalid) as error:
        raise StartFailed(str(error)) from None
    anyio.run(serve_until_signalled, settings, stages)


@dataclass(frozen=True, slots=True)
class Stages:
    """What is built before the event loop starts: everything that takes long or can be misconfigured."""

    registries: Registries
    norms: NormsKeeper
    engine: InferenceEngine
    client: Redis
    feed_client: Redis


def build_stages(settings: Settings) -> Stages:
    """Open the clients, load the registries, build and warm the network.

    Raises:
        RedisUrlInvalid, RegistryCorrupt, DeviceUnavailable: the settings or files are unusable; the text says how.
    """
    client, feed_client = open_client(settings), open_client(settings)
    registries = Registries(settings.var_dir / "registries")
    engine = build_engine(settings)
    warm_ms = engine.warm_up()
    known = engine.statistics()
    log.info(
        "model_warm",
        warm_ms=round(warm_ms, 1),
        device=known.device,
        precision=known.precision,
        products=known.products,
        digest=engine.policy_digest,
    )
    if known.compile.reason:
        log.warning("tamiyo_gnn_compile_disabled", reason=known.compile.reason)
    return Stages(registries, NormsKeeper(settings.var_dir / NORMS_FILE), engine, client, feed_client)


async def serve_until_signalled(settings: Settings, stages: Stages) -> None:
    """Run the worker in this event loop until SIGTERM or SIGINT, then drain. A second signal stops at once."""
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_on_signal, stop, group.cancel_scope)
        await serve(settings, stages, stop)
        group.cancel_scope.cancel()
    log.info("stopped")


async def serve(settings: Settings, stages: Stages, stop: anyio.Event) -> None:
    """Run the worker until ``stop`` is set, then commit what is claimed and give the leases back."""
    async with stages.client as client, stages.feed_client as feed_client:
        await through_outages("connect", client.ping)
        committer = Committer(client)
        tables = Tables()
        feed = _table_feed(settings, feed_client)
        keeper = TableKeeper(settings, tables, stages.registries, feed, committer)
        inference = InferenceStage(
            stages.engine,
            budget=BatchBudget(settings.batch_graphs, settings.batch_nodes, settings.batch_edges),
            queue_delay_ms=settings.queue_delay_ms,
            max_queued=settings.max_queued,
        )
        processor = StepProcessor(
            settings, tables, keeper, _graph_builder(settings, stages), inference, stages.engine.policy_version
        )
        flushes = (
            PeriodicFlush("registries", stages.registries.flush),
            PeriodicFlush("norms", stages.norms.flush),
        )
        await keeper.catch_up()
        async with anyio.create_task_group() as background:
            await background.start(inference.run)
            background.start_soon(keeper.follow)
            for flush in flushes:
                background.start_soon(flush.flush_for_ever, settings.flush_interval_s)
            async with anyio.create_task_group() as serving:
                for number in range(settings.partitions):
                    serving.start_soon(
                        _serve_partition, number, settings, client, committer, processor, stages.norms, stop
                    )
                log.info("ready", group=settings.group, worker_id=settings.worker_id)
            background.cancel_scope.cancel()
        for flush in flushes:
            await flush.flush()


async def _serve_partition(
    number: int,
    settings: Settings,
    client: Redis,
    committer: Committer,
    processor: StepProcessor,
    norms: NormsKeeper,
    stop: anyio.Event,
) -> None:
    lease = PartitionLease(
        client,
        prefix=settings.key_prefix,
        partition=number,
        owner=settings.worker_id,
        ttl_ms=settings.lease_ttl_ms,
    )
    options = GroupOptions(
        group=settings.group,
        consumer=settings.worker_id,
        count=settings.claim_count,
        block_ms=settings.block_ms,
        min_idle_ms=settings.min_idle_ms,
    )
    streams = {settings.key(stream, number): stream for stream in sorted(ORDERED)}
    async with open_client(settings) as reader:
        group = ConsumerGroup(reader, streams, options)
        await Partition(number, settings, lease, group, committer, processor, norms).serve(stop)


async def _stop_on_signal(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if stop.is_set():
                log.warning("stopping_at_once", signal=signal.Signals(number).name)
                scope.cancel()
                return
            log.info("draining", signal=signal.Signals(number).name)
            stop.set()
            # A Redis that is away must not keep us: uncommitted entries stay pending and are read again.
            scope.deadline = anyio.current_time() + DRAIN_TIMEOUT_S


def _graph_builder(settings: Settings, stages: Stages) -> GraphBuilder:
    return GraphBuilder(
        stages.registries,
        max_cached=settings.max_graphs_cached,
        max_cached_bytes=settings.max_graph_bytes,
        max_nodes=settings.max_nodes,
        max_edges=settings.max_edges,
        deadline_ms=settings.decision_deadline_ms,
    )


def _table_feed(settings: Settings, client: Redis) -> TableFeed:
    streams = {settings.key(stream): stream for stream in FEEDS}
    return TableFeed(client, streams, count=settings.claim_count, block_ms=settings.block_ms)


def build_engine(settings: Settings) -> InferenceEngine:
    """Return the network of ``settings`` on its device, not yet warmed up.

    Raises:
        DeviceUnavailable: the device of the settings does not exist here.
        NoProducts: no way to multiply matrices on it is exact enough for the precision.
    """
    config = TamiyoGNNConfig()
    network = build_network(config, seed=settings.model_seed)
    return InferenceEngine(
        network,
        policy_version=config.architecture_version,
        policy_digest=state_digest(network),
        device=settings.device,
        threads=settings.threads,
        executor=settings.executor,
        precision=settings.precision,
        compile_model=settings.compile_model,
    )
