"""One partition: hold its lease, read its entries, hand each run its mail, commit the outcome (design §4, §10).

A run's mail is handled in order by one task; different runs proceed at the same time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
import structlog
from anyio import to_thread
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from consumers.delivery import Delivery
from consumers.group import ConsumerGroup
from consumers.lease import Fence
from consumers.membership import SharedLease
from producers.commit import Acknowledgement, Commit, Committer, FenceLost, Output, SavedState
from schemas.catalogue import Stream
from schemas.entry import decode_entry, encode_entry
from schemas.errors import EntryError
from schemas.kasmina import SeedExport
from schemas.record import Message
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.hub.priority import destinations
from tamiyo_stream.policy.signature import sign_command
from tamiyo_stream.runs.snapshot import encode_snapshot
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.committed_states import CommittedStates
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.observing import StepObserver
from tamiyo_stream.worker.refusals import DELIVERY_CAP, TRIMMED, dead_letter, new_id, reason_of
from tamiyo_stream.worker.steps import Mail, Outcome, StepProcessor

log = structlog.get_logger("tamiyo.partition")

#: Claimed, uncommitted entries at which claiming waits, in claims: one being worked on, one behind it.
CLAIMS_IN_FLIGHT = 2


@dataclass(slots=True)
class _Mailbox:
    mail: list[Mail] = field(default_factory=list)
    busy: bool = False


class Partition:
    """Serves one partition while this worker holds its lease.

    Args:
        number: the partition. group: reader of its streams, on a connection of its own.
        norms: where the runs' tables are kept for the file. observer: told what was done, after it was.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the stages that a partition drives
        self,
        number: int,
        settings: Settings,
        lease: SharedLease,
        group: ConsumerGroup,
        committer: Committer,
        processor: StepProcessor,
        norms: NormsKeeper,
        observer: StepObserver,
    ) -> None:
        self._number = number
        self._settings = settings
        self._lease = lease
        self._group = group
        self._committer = committer
        self._processor = processor
        self._norms = norms
        self._observer = observer
        self._beat = observer.beat_of(f"partition {number}")
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._committed = CommittedStates(settings.max_runs)
        self._mailboxes: dict[str, _Mailbox] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._settled = anyio.Event()
        self._fence = Fence("", "")

    async def serve(self, stop: anyio.Event) -> None:
        """Serve whenever the lease can be had and the share allows it, until ``stop`` is set.

        Drains and gives the lease back before returning, and where other workers are to have it.
        """
        while not stop.is_set():
            self._beat()
            fence = await through_outages("acquire lease", self._lease.acquire)
            if fence is None:
                with anyio.move_on_after(self._settings.lease_ttl_ms / 10_000):
                    await stop.wait()
                continue
            log.info("lease_acquired", partition=self._number, token=fence.token)
            await self._serve_as_owner(fence, stop)
            await through_outages("release lease", self._lease.release)

    async def _serve_as_owner(self, fence: Fence, stop: anyio.Event) -> None:
        self._fence = fence
        self._committed.begin(fence)
        self._runs.clear()  # what another owner may have changed is read again
        self._mailboxes.clear()
        self._in_flight.clear()
        self._group.adopt()
        try:
            async with anyio.create_task_group() as owner:
                async with anyio.create_task_group() as work:
                    owner.start_soon(self._keep_lease)
                    await self._save_again()
                    await self._claim_until(stop, work)
                # `work` has finished: every claimed entry is committed.
                owner.cancel_scope.cancel()
        except* FenceLost as lost:
            log.warning("lease_lost", partition=self._number, detail=str(lost.exceptions[0]))

    async def _save_again(self) -> None:
        """Give an emptied Redis back the states of our runs: their next step may come to another worker."""
        for run_id, payload in self._committed.items():
            key = self._state_key(run_id)
            saved = await through_outages("load run", partial(self._committer.load_state, key))
            if saved is None:
                state = SavedState(key, payload, self._settings.snapshot_ttl_s)
                commit = self._fenced(Commit(new_id(), state=state))
                await through_outages("save run again", partial(self._committer.commit, commit))

    async def _keep_lease(self) -> None:
        while True:
            await anyio.sleep(self._settings.lease_ttl_ms / 3000)
            if not await through_outages("renew lease", self._lease.renew):
                raise FenceLost(f"the lease of partition {self._number} expired and was taken by another worker")

    async def _claim_until(self, stop: anyio.Event, work: TaskGroup) -> None:
        limit = CLAIMS_IN_FLIGHT * self._settings.claim_count
        while not stop.is_set() and self._lease.wanted:
            self._beat()
            if len(self._in_flight) >= limit:
                await self._until_settled()
                continue
            claimed = await through_outages("claim", self._claim)
            self._observer.claimed(claimed)
            for delivery in claimed:
                if delivery.alone:
                    await self._until_idle()
                await self._receive(delivery, work)
                if delivery.alone:
                    await self._until_idle()

    async def _until_settled(self) -> None:
        self._settled = anyio.Event()
        await self._settled.wait()

    async def _until_idle(self) -> None:
        while self._in_flight:
            await self._until_settled()

    async def _claim(self) -> list[Delivery]:
        try:
            return await self._group.claim(self._in_flight)
        except (RedisError, OSError):
            self._group.rewind()  # the reply may be lost while Redis counts its entries as given to us
            raise

    async def _receive(self, delivery: Delivery, work: TaskGroup) -> None:
        key = (delivery.key, delivery.entry_id)
        if key in self._in_flight:
            return  # handed out again while we are working on it
        self._in_flight.add(key)
        if delivery.attempts > self._settings.max_deliveries:
            detail = f"handed out {delivery.attempts - 1} times and never settled; its handling ends the worker"
            await self._refuse([delivery], DELIVERY_CAP, detail)
            return
        if not delivery.fields:
            await self._refuse([delivery], TRIMMED, "the stream was trimmed before the entry was handled")
            return
        try:
            entry = decode_entry(delivery.fields, self._settings.keyring, stream=delivery.stream)
        except EntryError as error:
            await self._refuse([delivery], reason_of(error), str(error))
            return
        run_id = _run_of(entry.message)
        mailbox = self._mailboxes.setdefault(run_id, _Mailbox())
        mailbox.mail.append(Mail(delivery, entry))
        if not mailbox.busy:
            mailbox.busy = True
            work.start_soon(self._work_off, run_id, mailbox)

    async def _work_off(self, run_id: str, mailbox: _Mailbox) -> None:
        """Handle a run's mail until there is none. A task's boundary: what fails is recorded, other runs go on."""
        while mailbox.mail:
            mail, mailbox.mail = mailbox.mail, []
            try:
                await self._handle(run_id, mail)
            except FenceLost:
                raise
            except Exception as error:  # noqa: BLE001 - a task's boundary: recorded below
                # On a thread: formatting a traceback reads source files.
                await to_thread.run_sync(partial(log.error, "step_failed", run_id=run_id, exc_info=error))
                self._runs.pop(run_id, None)  # half-changed: the saved state is the truth
                await self._refuse([item.delivery for item in mail], reason_of(error), repr(error))
        mailbox.busy = False
        del self._mailboxes[run_id]

    async def _handle(self, run_id: str, mail: Sequence[Mail]) -> None:
        run = await self._load(run_id)
        trace, started = self._observer.begin(mail), time.perf_counter()
        outcome = await self._processor.process(run, mail)
        trace.stage("decide")
        decided = time.perf_counter()
        await self._commit([item.delivery for item in mail], self._outputs(outcome, trace.carrier), run)
        trace.stage("commit")
        stages_s = {"decide": decided - started, "commit": time.perf_counter() - decided}
        self._norms.keep(run)
        self._observer.committed(run, mail, outcome, trace, {name: 1000 * s for name, s in stages_s.items()})

    async def _load(self, run_id: str) -> RunState:
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = await self._restore(run_id)
            while len(self._runs) > self._settings.max_runs:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run_id)
        return run

    async def _restore(self, run_id: str) -> RunState:
        saved = await through_outages("load run", partial(self._committer.load_state, self._state_key(run_id)))
        run = self._committed.newest(run_id, saved)
        return run or RunState(run_id=run_id, norms=self._norms.restore(run_id))

    def _outputs(self, outcome: Outcome, trace: Mapping[str, str]) -> list[Output]:
        addressed: list[tuple[Stream, Message, str]] = []
        if outcome.decision is not None:
            command = sign_command(outcome.decision.command, self._settings.keyring)
            addressed.append((Stream.COMMANDS, command, command.command_id))
        addressed += [(Stream.REPORTS, report, report.report_id) for report in outcome.reports]
        if outcome.telemetry is not None:
            event_id = new_id()
            addressed += [(stream, outcome.telemetry, event_id) for stream in destinations(outcome.telemetry)]
        return [self._output(stream, message, event_id, trace) for stream, message, event_id in addressed]

    def _output(self, stream: Stream, message: Message, event_id: str, trace: Mapping[str, str]) -> Output:
        self._observer.meters.sent(stream.value)
        fields = encode_entry(message, self._settings.keyring, event_id=event_id, trace=trace)
        return Output(self._settings.key(stream), fields, self._settings.maxlen(stream))

    async def _refuse(self, deliveries: Sequence[Delivery], reason: str, detail: str) -> None:
        outputs = [
            dead_letter(item, self._settings, reason=reason, detail=detail, deliveries=item.attempts)
            for item in deliveries
        ]
        await self._commit(deliveries, outputs, None)
        self._observer.refused(deliveries, reason)

    async def _commit(
        self, deliveries: Sequence[Delivery], outputs: Sequence[Output], run: RunState | None
    ) -> None:
        settings = self._settings
        state = (
            SavedState(self._state_key(run.run_id), encode_snapshot(run), settings.snapshot_ttl_s) if run else None
        )
        acknowledgements = _acknowledgements(deliveries, settings.group)
        commit = self._fenced(Commit(new_id(), outputs, state, acknowledgements))
        await through_outages("commit", lambda: self._committer.commit(commit))
        if run is not None and state is not None:
            self._committed.keep(run.run_id, state.payload)
        self._in_flight -= {(item.key, item.entry_id) for item in deliveries}
        self._observer.settled(deliveries)
        self._settled.set()

    def _fenced(self, commit: Commit) -> Commit:
        return replace(commit, fence_key=self._fence.key, fence_token=self._fence.token)

    def _state_key(self, run_id: str) -> str:
        return f"{self._settings.key_prefix}:run:{{{self._number}}}:{run_id}"


def _run_of(message: Message) -> str:
    if isinstance(message, SystemStatePacket | SeedExport):
        return message.run_id
    raise TypeError(f"{type(message).__name__} has no run; its stream must not be an ordered input")


def _acknowledgements(deliveries: Sequence[Delivery], group: str) -> list[Acknowledgement]:
    by_key: dict[str, list[str]] = {}
    for delivery in deliveries:
        by_key.setdefault(delivery.key, []).append(delivery.entry_id)
    return [Acknowledgement(key, group, tuple(ids)) for key, ids in by_key.items()]
