"""The hub beside the stages: what it is made of, its tasks, and how it ends (design §11)."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import structlog
from anyio import to_thread
from anyio.abc import TaskStatus
from redis.asyncio import Redis
from starlette.applications import Starlette

from producers.commit import Committer
from schemas.partitions import partition_of
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.hub.app import build_app
from tamiyo_stream.hub.hub_state import HubState, ModelInUse
from tamiyo_stream.hub.meters import ExportOptions, Meters
from tamiyo_stream.hub.server import AddressUnavailable, listen, serve_app
from tamiyo_stream.hub.tracing import StepTracer
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import open_client
from tamiyo_stream.worker.observing import StepObserver
from tamiyo_stream.worker.telemetry import FEEDS_EVERY_S, TelemetryDesk

log = structlog.get_logger("tamiyo.hub")


@dataclass(frozen=True, slots=True)
class WorkerHub:
    """One worker's hub. ``held``: partition -> whether this worker holds its lease now."""

    settings: Settings
    observer: StepObserver
    app: Starlette | None
    closing: anyio.Event
    registries: Registries
    held: dict[int, Callable[[], bool]] = field(default_factory=dict)

    async def serve(
        self, client: Redis, committer: Committer, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the hub's tasks for ever; ready once the panel's address is bound, or given up."""
        observer, settings = self.observer, self.settings
        async with open_client(settings) as reader, anyio.create_task_group() as tasks:
            desk = TelemetryDesk(settings, observer.state, observer.meters, reader, client, committer, self.owns)
            tasks.start_soon(desk.follow)
            tasks.start_soon(desk.publish_for_ever, settings.telemetry_interval_s)
            tasks.start_soon(desk.watch_feeds)
            tasks.start_soon(self._count_registries)
            if self.app is not None:
                await tasks.start(self._serve_web, self.app)
            task_status.started()

    def owns(self, run_id: str) -> bool:
        """Return whether this worker holds the partition of ``run_id``; what has no run belongs to the first."""
        number = partition_of(run_id, self.settings.partitions) if run_id else 0
        held = self.held.get(number)
        return held is not None and held()

    async def close(self) -> None:
        """End open streams and send what is left to the collector."""
        self.closing.set()
        await to_thread.run_sync(self.observer.meters.close)
        await to_thread.run_sync(self.observer.tracer.close)

    async def _count_registries(self) -> None:
        while True:
            self.observer.state.registries = {registry.name: len(registry) for registry in self.registries}
            await anyio.sleep(FEEDS_EVERY_S)

    async def _serve_web(
        self, app: Starlette, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        settings = self.settings
        try:
            listener = listen(settings.web_host, settings.web_port)
        except AddressUnavailable as error:
            # A second worker on one machine decides all the same; its port is the operator's to choose.
            log.warning("panel_unavailable", detail=f"TAMIYO_WEB_PORT: {error}")
            task_status.started()
            return
        host, port = listener.getsockname()[:2]
        log.info("panel", url=f"http://{host}:{port}/")
        task_status.started()
        await serve_app(app, listener, self.closing)


async def open_hub(
    settings: Settings, engine: InferenceEngine, tables: Tables, registries: Registries
) -> WorkerHub:
    """Return the hub of this worker, its pages loaded; nothing runs yet."""
    closing = anyio.Event()
    # On a thread: the version and the panel's pages are files.
    return await to_thread.run_sync(_assemble, settings, engine, tables, registries, closing)


def _assemble(
    settings: Settings,
    engine: InferenceEngine,
    tables: Tables,
    registries: Registries,
    closing: anyio.Event,
) -> WorkerHub:
    version = importlib.metadata.version("tamiyo-stream")
    state = HubState(worker_id=settings.worker_id)
    state.progress.step_limit_s = settings.stage_limit_s
    state.model = _model_in_use(engine)
    export = ExportOptions(
        prometheus=settings.prometheus and bool(settings.web_host),
        otlp_endpoint=settings.otlp_endpoint,
        otlp_interval_s=settings.otlp_interval_s,
        version=version,
    )
    meters = Meters(state, export)
    tracer = StepTracer.to_collector(
        settings.otlp_endpoint, worker_id=settings.worker_id, version=version, sampled=settings.trace_sampled
    )
    token = settings.web_token.get_secret_value() if settings.web_token is not None else ""
    app = build_app(state, meters, closing, token=token) if settings.web_host else None
    observer = StepObserver(state, meters, tracer, tables, settings.group, settings.stage_limit_s)
    return WorkerHub(settings, observer, app, closing, registries)


def _model_in_use(engine: InferenceEngine) -> ModelInUse:
    known = engine.statistics()
    return ModelInUse(
        version=engine.policy_version,
        digest=engine.policy_digest,
        device=known.device,
        precision=known.precision,
        compiled=known.compile.enabled or None,
        compile_reason=known.compile.reason or "",
        warm_ms=known.compile.warm_ms,
        in_use_since_ns=time.time_ns(),
    )
