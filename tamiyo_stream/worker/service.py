"""The composition root: opens connections, builds the stages, runs them in one task group, drains on SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import structlog
from anyio.abc import TaskStatus
from redis.asyncio import Redis

from consumers.feed import TableFeed
from consumers.group import ConsumerGroup, GroupOptions
from consumers.lease import PartitionLease
from consumers.membership import Membership, PartitionShare, SharedLease, fair_share
from consumers.trimming import StreamTrimmer
from producers.commit import Committer
from schemas.partitions import ORDERED
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.compatibility import registries_to_adopt
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused
from tamiyo_stream.checkpoints.updates import read_update
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries, RegistryCorrupt
from tamiyo_stream.hub.access import TokenRequired, require_token
from tamiyo_stream.inference.device import DeviceUnavailable
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.micro_batcher import BatchBudget
from tamiyo_stream.inference.output import NonFiniteOutput
from tamiyo_stream.inference.self_test import NoProducts
from tamiyo_stream.inference.stage import InferenceStage
from tamiyo_stream.inference.swap import TrialRules
from tamiyo_stream.model.config import TamiyoGNNConfig
from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import TamiyoGNN, build_network
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import BUS_LISTENER, RedisUrlInvalid, open_client, through_outages
from tamiyo_stream.worker.flushing import PeriodicFlush
from tamiyo_stream.worker.housekeeping import keep_house
from tamiyo_stream.worker.hub import WorkerHub, open_hub
from tamiyo_stream.worker.logs import configure_logging
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.partition import Partition
from tamiyo_stream.worker.policy_events import PolicyEvents
from tamiyo_stream.worker.policy_updates import PolicyUpdates, Read, SwapRules
from tamiyo_stream.worker.steps import StepProcessor
from tamiyo_stream.worker.tables import FEEDS, TableKeeper

NORMS_FILE = "gnn_norms.json"
#: SIGTERM: time to commit what is claimed before it is handed back to the group by dropping it. Of the five
#: seconds that a worker may take, the end of the interpreter needs one or two on a busy machine.
DRAIN_TIMEOUT_S = 2.0
#: Shares of the lease time: a worker that died is missed before its leases expire.
ANNOUNCEMENT_TTL = 0.6
ANNOUNCEMENT_INTERVAL = 0.2

log = structlog.get_logger("tamiyo.worker")


class StartFailed(RuntimeError):
    """The worker cannot start; the text says what to do."""


def run_worker(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT.

    Raises:
        StartFailed: a damaged registry, an unusable checkpoint, an unknown device, an unusable Redis URL.
    """
    configure_logging(settings)
    try:
        if settings.web_host:
            require_token(settings.web_host, settings.web_token.get_secret_value() if settings.web_token else "")
    except TokenRequired as error:
        raise StartFailed(f"TAMIYO_WEB_TOKEN: {error}") from None
    log.info("configuration", **settings.redacted())
    if settings.keyring is None:
        log.warning("unsigned_bus", detail="no TAMIYO_SIGNING_SECRET: entries are neither verified nor signed")
    try:
        stages = build_stages(settings)
    except CheckpointRefused as refused:
        raise StartFailed(f"TAMIYO_CHECKPOINT: refused ({refused.reason}): {refused}") from None
    except (RegistryCorrupt, DeviceUnavailable, NoProducts, NonFiniteOutput, RedisUrlInvalid) as error:
        raise StartFailed(str(error)) from None
    anyio.run(serve_until_signalled, settings, stages)


@dataclass(frozen=True, slots=True)
class Stages:
    """What is built before the event loop starts: everything that takes long or can be misconfigured.

    ``read_policy`` reads the checkpoint that a policy update announces.
    """

    registries: Registries
    norms: NormsKeeper
    engine: InferenceEngine
    client: Redis
    feed_client: Redis
    read_policy: Read = read_update


def build_stages(settings: Settings) -> Stages:
    """Open the clients, load the registries, build and warm the network.

    Raises:
        RedisUrlInvalid, RegistryCorrupt, CheckpointRefused, DeviceUnavailable: the settings or files are unusable;
            the text says how.
    """
    client, feed_client = open_client(settings), open_client(settings)
    registries = Registries(settings.var_dir / "registries")
    engine = build_engine(settings, registries)
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
        inference = InferenceStage(
            stages.engine,
            budget=BatchBudget(settings.batch_graphs, settings.batch_nodes, settings.batch_edges),
            queue_delay_ms=settings.queue_delay_ms,
            max_queued=settings.max_queued,
        )
        policies = _policy_updates(settings, stages, inference, PolicyEvents(settings, client, committer))
        keeper = TableKeeper(settings, tables, stages.registries, feed, committer, policies.offer)
        flushes = (
            PeriodicFlush("registries", stages.registries.flush),
            PeriodicFlush("norms", stages.norms.flush),
        )
        await keeper.catch_up()
        await policies.restore()
        processor = StepProcessor(
            settings, tables, keeper, _graph_builder(settings, stages), inference, policies.serving.version
        )
        hub = await open_hub(settings, stages.engine, tables, stages.registries)
        BUS_LISTENER.set(hub.observer.heard)
        async with _saved_at_the_end(flushes), anyio.create_task_group() as background:
            beat_of = hub.observer.beat_of
            await background.start(inference.run, beat_of("inference"))
            await background.start(hub.serve, client, committer)
            background.start_soon(keeper.follow, beat_of("tables"))
            background.start_soon(policies.follow)
            for flush in flushes:
                beat = beat_of(f"flush {flush.name}", rest_s=settings.flush_interval_s)
                background.start_soon(flush.flush_for_ever, settings.flush_interval_s, beat)
            membership, share = _membership(settings, client), PartitionShare()
            await background.start(_keep_share, settings, membership, share, beat_of("share"))
            async with anyio.create_task_group() as serving:
                for number in range(settings.partitions):
                    partition = partial(_serve_partition, number, settings, client, committer, processor)
                    serving.start_soon(partition, stages.norms, hub, share, stop)
                hub.observer.state.progress.started = True
                log.info("ready", group=settings.group, worker_id=settings.worker_id)
            await hub.close()
            background.cancel_scope.cancel()
        await through_outages("leave", membership.leave)


@asynccontextmanager
async def _saved_at_the_end(flushes: Sequence[PeriodicFlush]) -> AsyncIterator[None]:
    """Write the files when the block is left, also where a Redis that is away kept it from ending in order."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            for flush in flushes:
                await flush.flush()


def _membership(settings: Settings, client: Redis) -> Membership:
    ttl_ms = int(settings.lease_ttl_ms * ANNOUNCEMENT_TTL)
    return Membership(client, prefix=settings.key_prefix, worker=settings.worker_id, ttl_ms=ttl_ms)


async def _keep_share(
    settings: Settings,
    membership: Membership,
    share: PartitionShare,
    beat: Callable[[], None],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Announce this worker and keep its share of the partitions up to date, for ever."""
    known = None
    while True:
        beat()
        members = await through_outages("announce worker", membership.announce)
        allowed = fair_share(membership.member, members, settings.partitions)
        share.allow(allowed)
        if known is None:
            task_status.started()
        if (len(members), allowed) != known:
            known = (len(members), allowed)
            log.info("partition_share", workers=len(members), allowed=allowed, partitions=settings.partitions)
        await anyio.sleep(settings.lease_ttl_ms / 1000 * ANNOUNCEMENT_INTERVAL)


async def _serve_partition(  # noqa: PLR0913, PLR0917 - the stages that the composition root connects
    number: int,
    settings: Settings,
    client: Redis,
    committer: Committer,
    processor: StepProcessor,
    norms: NormsKeeper,
    hub: WorkerHub,
    share: PartitionShare,
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
        max_deliveries=settings.max_deliveries,
        reap_idle_ms=settings.reap_idle_s * 1000,
    )
    streams = {settings.key(stream, number): stream for stream in sorted(ORDERED)}
    async with open_client(settings) as reader:
        group = ConsumerGroup(reader, streams, options)
        trimmers = [StreamTrimmer(client, key, keep=settings.input_maxlen) for key in streams]
        shared = SharedLease(lease, share, number)
        hub.held[number] = lambda: shared.held
        partition = Partition(number, settings, shared, group, committer, processor, norms, hub.observer)
        async with anyio.create_task_group() as housekeeping:
            housekeeping.start_soon(keep_house, number, group, trimmers, lambda: shared.held)
            await partition.serve(stop)
            housekeeping.cancel_scope.cancel()


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


def _policy_updates(
    settings: Settings, stages: Stages, inference: InferenceStage, events: PolicyEvents
) -> PolicyUpdates:
    trial = TrialRules(
        decisions=settings.trial_decisions,
        share=settings.canary_share,
        error_share=settings.trial_error_share,
        late_share=settings.trial_late_share,
    )
    return PolicyUpdates(
        stages.engine,
        inference,
        stages.registries,
        SwapRules(settings.shadow_graphs, trial),
        events,
        read=stages.read_policy,
        build=partial(_engine_of_checkpoint, settings),
    )


def build_engine(settings: Settings, registries: Registries | None = None) -> InferenceEngine:
    """Return the policy that ``settings`` start with on its device, not yet warmed up.

    That is the network of the checkpoint, whose vocabularies ``registries`` adopt, else an untrained one.

    Raises:
        CheckpointRefused: the checkpoint cannot be used; the reason and the fix.
        DeviceUnavailable: the device of the settings does not exist here.
        NoProducts: no way to multiply matrices on it is exact enough for the precision.
    """
    if settings.checkpoint is None:
        config = TamiyoGNNConfig()
        network = build_network(config, seed=settings.model_seed)
        return _engine_of(settings, network, config.architecture_version, state_digest(network))
    known = registries or Registries()
    checkpoint = read_checkpoint(settings.checkpoint, Trust(keyring=settings.keyring), registries=known)
    for name, entries in registries_to_adopt(checkpoint.registries, known).items():
        known[name].adopt(entries)
    return _engine_of_checkpoint(settings, checkpoint, checkpoint.digest)


def _engine_of_checkpoint(settings: Settings, checkpoint: Checkpoint, digest: str) -> InferenceEngine:
    return _engine_of(settings, checkpoint.network(), checkpoint.policy_version, digest)


def _engine_of(settings: Settings, network: TamiyoGNN, version: str, digest: str) -> InferenceEngine:
    return InferenceEngine(
        network,
        policy_version=version,
        policy_digest=digest,
        device=settings.device,
        threads=settings.threads,
        executor=settings.executor,
        precision=settings.precision,
        compile_model=settings.compile_model,
    )
