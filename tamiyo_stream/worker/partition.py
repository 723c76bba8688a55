"""One partition: hold its lease, read its entries, hand each run its mail, commit the outcome (design §4, §10).

A run's mail is handled in order by one task; different runs proceed at the same time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio
import structlog
from anyio import to_thread
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from consumers.delivery import Delivery
from consumers.group import ConsumerGroup
from consumers.lease import Fence, PartitionLease
from producers.commit import Acknowledgement, Commit, Committer, FenceLost, Output, SavedState
from schemas.catalogue import Stream
from schemas.entry import decode_entry, encode_entry
from schemas.errors import EntryError
from schemas.kasmina import SeedExport
from schemas.record import Message
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.hub.priority import destinations
from tamiyo_stream.policy.signature import sign_command
from tamiyo_stream.runs.snapshot import decode_snapshot, encode_snapshot
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.norms import NormsKeeper
from tamiyo_stream.worker.refusals import TRIMMED, dead_letter, new_id, reason_of
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
        norms: where the runs' tables are kept for the file.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        lease: PartitionLease,
        group: ConsumerGroup,
        committer: Committer,
        processor: StepProcessor,
        norms: NormsKeeper,
    ) -> None:
        self._number = number
        self._settings = settings
        self._lease = lease
        self._group = group
        self._committer = committer
        self._processor = processor
        self._norms = norms
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._settled = anyio.Event()
        self._fence = Fence("", "")

    async def serve(self, stop: anyio.Event) -> None:
        """Serve whenever the lease can be had, until ``stop`` is set; drain and give it back before returning."""
        while not stop.is_set():
            fence = await through_outages("acquire lease", self._lease.acquire)
            if fence is None:
                with anyio.move_on_after(self._settings.lease_ttl_ms / 3000):
                    await stop.wait()
                continue
            log.info("lease_acquired", partition=self._number, token=fence.token)
            await self._serve_as_owner(fence, stop)
        await through_outages("release lease", self._lease.release)

    async def _serve_as_owner(self, fence: Fence, stop: anyio.Event) -> None:
        self._fence = fence
        self._runs.clear()  # what another owner may have changed is read again
        self._mailboxes.clear()
        self._in_flight.clear()
        self._group.rewind()
        try:
            async with anyio.create_task_group() as owner:
                async with anyio.create_task_group() as work:
                    owner.start_soon(self._keep_lease)
                    await self._claim_until(stop, work)
                # `work` has finished: every claimed entry is committed.
                owner.cancel_scope.cancel()
        except* FenceLost as lost:
            log.warning("lease_lost", partition=self._number, detail=str(lost.exceptions[0]))

    async def _keep_lease(self) -> None:
        while True:
            await anyio.sleep(self._settings.lease_ttl_ms / 3000)
            if not await through_outages("renew lease", self._lease.renew):
                raise FenceLost(f"the lease of partition {self._number} expired and was taken by another worker")

    async def _claim_until(self, stop: anyio.Event, work: TaskGroup) -> None:
        limit = CLAIMS_IN_FLIGHT * self._settings.claim_count
        while not stop.is_set():
            if len(self._in_flight) >= limit:
                self._settled = anyio.Event()
                await self._settled.wait()
                continue
            for delivery in await through_outages("claim", self._claim):
                await self._receive(delivery, work)

    async def _claim(self) -> list[Delivery]:
        try:
            return await self._group.claim()
        except (RedisError, OSError):
            self._group.rewind()  # the reply may be lost while Redis counts its entries as given to us
            raise

    async def _receive(self, delivery: Delivery, work: TaskGroup) -> None:
        key = (delivery.key, delivery.entry_id)
        if key in self._in_flight:
            return  # handed out again while we are working on it
        self._in_flight.add(key)
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
        outcome = await self._processor.process(run, mail)
        await self._commit([item.delivery for item in mail], self._outputs(outcome), run)
        self._norms.keep(run)

    async def _load(self, run_id: str) -> RunState:
        run = self._runs.get(run_id)
        if run is None:
            payload = await through_outages(
                "load run", lambda: self._committer.load_state(self._state_key(run_id))
            )
            if payload is not None:
                run = decode_snapshot(payload)
            else:
                run = RunState(run_id=run_id, norms=self._norms.restore(run_id))
            self._runs[run_id] = run
            while len(self._runs) > self._settings.max_runs:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run_id)
        return run

    def _outputs(self, outcome: Outcome) -> list[Output]:
        settings, outputs = self._settings, list[Output]()
        if outcome.decision is not None:
            command = sign_command(outcome.decision.command, settings.keyring)
            outputs.append(self._output(Stream.COMMANDS, command, settings.commands_maxlen, command.command_id))
        outputs += [
            self._output(Stream.REPORTS, report, settings.reports_maxlen, report.report_id)
            for report in outcome.reports
        ]
        if outcome.telemetry is not None:
            event_id = new_id()
            outputs += [
                self._output(stream, outcome.telemetry, self._maxlen_of(stream), event_id)
                for stream in destinations(outcome.telemetry)
            ]
        return outputs

    def _maxlen_of(self, stream: Stream) -> int:
        settings = self._settings
        return settings.emergency_maxlen if stream is Stream.EMERGENCY else settings.telemetry_maxlen

    def _output(self, stream: Stream, message: Message, maxlen: int, event_id: str) -> Output:
        fields = encode_entry(message, self._settings.keyring, event_id=event_id)
        return Output(self._settings.key(stream), fields, maxlen)

    async def _refuse(self, deliveries: Sequence[Delivery], reason: str, detail: str) -> None:
        outputs = []
        for item in deliveries:
            asked = partial(self._group.times_delivered, item.key, item.entry_id)
            count = await through_outages("count deliveries", asked)
            outputs.append(dead_letter(item, self._settings, reason=reason, detail=detail, deliveries=count))
        await self._commit(deliveries, outputs, None)

    async def _commit(
        self, deliveries: Sequence[Delivery], outputs: Sequence[Output], run: RunState | None
    ) -> None:
        settings = self._settings
        commit = Commit(
            commit_id=new_id(),
            outputs=outputs,
            state=SavedState(self._state_key(run.run_id), encode_snapshot(run), settings.snapshot_ttl_s)
            if run is not None
            else None,
            acknowledgements=_acknowledgements(deliveries, settings.group),
            fence_key=self._fence.key,
            fence_token=self._fence.token,
        )
        await through_outages("commit", lambda: self._committer.commit(commit))
        self._in_flight -= {(item.key, item.entry_id) for item in deliveries}
        self._settled.set()

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
