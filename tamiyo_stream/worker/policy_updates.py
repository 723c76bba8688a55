"""Replaces the policy while the worker runs: verify, build, shadow, swap, and go back where it fails (design §12).

Everything that takes long runs on a thread beside the one that serves; until the swap, and after a refusal, the
old policy decides. The policy stream is read from its beginning at every start: the newest usable update then
takes over before the first decision, as it had already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
import structlog
import torch
from anyio import to_thread
from anyio.streams.memory import MemoryObjectSendStream

from schemas.simic import PolicyUpdate
from tamiyo_stream.checkpoints.checkpoint import Checkpoint
from tamiyo_stream.checkpoints.compatibility import registries_to_adopt
from tamiyo_stream.checkpoints.refusal import CheckpointRefused
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.structures import StepGraph, Topology
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.shadow import Comparison, ShadowReport
from tamiyo_stream.inference.stage import Engine, Evaluated, InferenceStage
from tamiyo_stream.inference.swap import LateRecord, Result, RollbackReason, Route, Trial, TrialRules
from tamiyo_stream.worker.memory import release_freed_memory
from tamiyo_stream.worker.policy_events import PolicyEvents, PolicyName

#: Updates kept while none of them is in force: the newest one may be unusable.
MAX_KEPT = 16
#: How long to wait for graphs to shadow; a worker without work must not wait for ever.
SHADOW_PATIENCE_S = 30.0
#: How long a newer update waits for the trial of the one before it.
TRIAL_PATIENCE_S = 30.0

log = structlog.get_logger("tamiyo.policies")

#: Reads what an update announces; builds the engine of a checkpoint with this digest.
Read = Callable[[PolicyUpdate, Registries], Checkpoint]
Build = Callable[[Checkpoint, str], InferenceEngine]


class CandidateRefused(RuntimeError):
    """A verified policy does not work here; ``reason`` is the code of ``policy_update_rejected``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SwapRules:
    """How an update comes into force; ``shadow_graphs``: compared before the swap, 0 = none."""

    shadow_graphs: int
    trial: TrialRules


@dataclass(slots=True, eq=False)
class _Running:
    """The trial that is on: the engines, its count, and how it ended."""

    stable: InferenceEngine
    candidate: InferenceEngine
    trial: Trial
    ended: anyio.Event
    reason: RollbackReason | None = None


class PolicyUpdates:
    """Takes the updates that the table keeper offers; the stage's observer.

    Args:
        engine: what decides until an update is in force.
        registries: the live vocabularies; those of a policy are adopted before it decides.
        read, build: see :data:`Read` and :data:`Build`; both block.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        stage: InferenceStage,
        registries: Registries,
        rules: SwapRules,
        events: PolicyEvents,
        *,
        read: Read,
        build: Build,
    ) -> None:
        self._serving = engine
        self._stage = stage
        self._registries = registries
        self._rules = rules
        self._events = events
        self._read = read
        self._build = build
        self._offered: list[PolicyUpdate] = []
        self._considered_at = -1
        self._arrived = anyio.Event()
        self._late = LateRecord(rules.trial.decisions)
        self._running: _Running | None = None
        self._batches: MemoryObjectSendStream[Evaluated] | None = None
        self._thread = anyio.CapacityLimiter(1)
        stage.observe(self)

    @property
    def serving(self) -> PolicyName:
        """The policy that decides, or did before the trial that is on."""
        return _name_of(self._serving)

    def offer(self, update: PolicyUpdate) -> None:
        """Consider ``update`` as soon as possible, unless a newer one was considered already."""
        known = any(kept.policy_id == update.policy_id for kept in self._offered)
        if update.issued_at <= self._considered_at or known:
            log.info("policy_update_outdated", policy_id=update.policy_id)
            return
        self._offered = sorted([*self._offered, update], key=lambda kept: kept.issued_at)[-MAX_KEPT:]
        self._arrived.set()

    async def restore(self) -> None:
        """Put the newest usable update offered so far in force at once; call it before the first decision.

        It had been in force already, so it is neither shadowed nor on trial; one that was taken back is passed
        over.
        """
        for update in self._take_offered():
            if await self._events.was_rolled_back(update):
                log.info("policy_update_passed_over", policy_id=update.policy_id, reason="policy_rolled_back")
                continue
            candidate = await self._prepared(update)
            if candidate is not None:
                self._serve_with(candidate)
                await self._events.applied(update, _name_of(candidate), agreement=None, share=1.0)
                return

    async def follow(self) -> None:
        """Put every update offered from now on in force, the newest first, for ever."""
        while True:
            await self._arrived.wait()
            newest, *older = self._take_offered()
            for update in older:
                await self._events.rejected(update, "superseded", "a newer update arrived before it was read")
            await self._consider(newest)
            await to_thread.run_sync(release_freed_memory, limiter=self._thread)

    async def _consider(self, update: PolicyUpdate) -> None:
        candidate = await self._prepared(update)
        if candidate is not None and candidate is not self._serving:
            await self._introduce(update, candidate)

    def evaluated(self, batch: Evaluated) -> None:
        """Hand a batch to the shadow evaluation where one waits for it."""
        if self._batches is not None:
            with suppress(anyio.WouldBlock):  # the shadow is at work: it takes the next one
                self._batches.send_nowait(batch)

    def decided(self, engine: Engine, result: Result) -> None:
        """Count a decision; end the trial at once where it shows that the new policy fails."""
        running = self._running
        if running is None or engine is not running.candidate:
            self._late.add(late=result is Result.LATE)
        elif not running.ended.is_set():
            running.reason = running.trial.record(result)
            if running.reason is not None or running.trial.passed:
                self._end(running)

    def _take_offered(self) -> list[PolicyUpdate]:
        offered, self._offered = self._offered[::-1], []
        self._arrived = anyio.Event()
        if offered:
            self._considered_at = offered[0].issued_at
        return offered

    async def _prepared(self, update: PolicyUpdate) -> InferenceEngine | None:
        """Return the engine of ``update``, warm; None where it was refused, which is told then."""
        try:
            return await self._prepare(update)
        except (CheckpointRefused, CandidateRefused) as refused:
            await self._events.rejected(update, str(refused.reason), str(refused))
        except NonFiniteOutput as error:
            await self._events.rejected(update, RollbackReason.NON_FINITE_OUTPUT, str(error))
        except Exception as error:  # noqa: BLE001 - a task's boundary: told, the old policy serves on
            await self._events.rejected(update, "internal_error", repr(error))
        return None

    async def _prepare(self, update: PolicyUpdate) -> InferenceEngine:
        checkpoint, digest = await to_thread.run_sync(self._load, update, limiter=self._thread)
        # Here, not on the thread: only the event loop numbers categories, and it may have done so meanwhile.
        for name, entries in registries_to_adopt(checkpoint.registries, self._registries).items():
            self._registries[name].adopt(entries)
        if digest == self._serving.policy_digest:
            log.info("policy_update_in_force", policy_id=update.policy_id, digest=digest)
            return self._serving
        topologies = self._stage.recent_topologies()
        return await to_thread.run_sync(self._warm, checkpoint, digest, topologies, limiter=self._thread)

    def _load(self, update: PolicyUpdate) -> tuple[Checkpoint, str]:
        torch.set_num_threads(1)  # of this thread: the others' cores are the serving thread's and the training's
        checkpoint = self._read(update, self._registries)
        return checkpoint, checkpoint.digest

    def _warm(self, checkpoint: Checkpoint, digest: str, topologies: Sequence[Topology]) -> InferenceEngine:
        engine = self._build(checkpoint, digest)
        for topology in topologies:
            engine.prepare(topology)
        engine.warm_up()
        return engine

    async def _introduce(self, update: PolicyUpdate, candidate: InferenceEngine) -> None:
        try:
            report = await self._shadow(candidate)
        except CandidateRefused as refused:
            await self._events.rejected(update, refused.reason, str(refused))
            return
        await self._events.compared(update, _name_of(candidate), report)
        await self._try_out(update, candidate, report)

    async def _shadow(self, candidate: InferenceEngine) -> ShadowReport:
        """Compare the candidate with the policy in force on the next real graphs, each after its answer."""
        comparison = Comparison()
        send, receive = anyio.create_memory_object_stream[Evaluated](1)
        with anyio.move_on_after(SHADOW_PATIENCE_S), send, receive:
            try:
                self._batches = send
                while len(comparison) < self._rules.shadow_graphs:
                    batch = await receive.receive()
                    outcomes, ms = await to_thread.run_sync(_infer, candidate, batch.graphs, limiter=self._thread)
                    comparison.add_batch(batch.outcomes, outcomes, old_ms=batch.ms, new_ms=ms)
            finally:
                self._batches = None
        report = comparison.report()
        if report.non_finite:
            raise CandidateRefused(
                RollbackReason.NON_FINITE_OUTPUT,
                f"its answers to {report.non_finite} of {len(comparison)} graphs are no numbers; train it again",
            )
        return report

    async def _try_out(self, update: PolicyUpdate, candidate: InferenceEngine, report: ShadowReport) -> None:
        """Swap, and wait until the new policy is promoted or taken back."""
        rules, name = self._rules.trial, _name_of(candidate)
        running = _Running(
            self._serving, candidate, Trial(rules, late_before=self._late.share), ended=anyio.Event()
        )
        self._running = running
        self._stage.reroute(Route(running.stable, candidate, rules.share))
        if running.trial.passed:
            self._end(running)
        await self._events.applied(update, name, agreement=report.agreement, share=rules.share)
        await self._wait_for(running)
        self._running = None
        decisions = running.trial.decisions
        if running.reason is None:
            await self._events.promoted(update, name, decisions)
        else:
            await self._events.rolled_back(update, name, running.reason, decisions)

    async def _wait_for(self, running: _Running) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_for_newer)
            await running.ended.wait()
            group.cancel_scope.cancel()

    async def _end_for_newer(self) -> None:
        """End a trial that keeps a newer update waiting: in favour of the policy unless it is a canary still."""
        await self._arrived.wait()
        await anyio.sleep(TRIAL_PATIENCE_S)
        running = (
            self._running
        )  # looked up late: a cancelled task's frame keeps what it holds until it is collected
        if running is None:
            return
        if self._rules.trial.share < 1.0:
            running.reason = RollbackReason.SUPERSEDED
        self._end(running)

    def _end(self, running: _Running) -> None:
        self._serve_with(running.candidate if running.reason is None else running.stable)
        running.ended.set()

    def _serve_with(self, engine: InferenceEngine) -> None:
        self._serving = engine
        self._stage.reroute(Route(engine))


def _infer(
    candidate: InferenceEngine, graphs: Sequence[StepGraph]
) -> tuple[list[NetworkOutput | NonFiniteOutput], float]:
    started = time.perf_counter()
    try:
        outcomes = candidate.infer(graphs)
    except Exception as error:
        raise CandidateRefused("inference_failed", f"{error!r} on {len(graphs)} graphs in service") from error
    return outcomes, (time.perf_counter() - started) * 1000


def _name_of(engine: InferenceEngine) -> PolicyName:
    return PolicyName(engine.policy_version, engine.policy_digest)
