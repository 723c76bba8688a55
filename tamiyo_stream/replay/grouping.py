"""Which mail each recorded command answered, and at which moments: read from the commands themselves.

A worker takes a run's mail together: the packets that a command names as answered and superseded, the seed exports
up to the one whose time it names, and packets that were refused meanwhile, which it counts among the rules that
fired. For the shared tables a command names nothing: an entry counts as read where it was on the bus when the
decided packet was claimed, or when the command before was committed, for the run's mail waits for that. That is
exact but for an entry that arrives within the same millisecond or two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.kasmina import SeedExport
from schemas.tamiyo import AdaptationCommand
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.replay.recording import Verified, VerifiedRecording
from tamiyo_stream.runs.intake import Verdict
from tamiyo_stream.worker.steps import SEEDS_AS_OF

NS_PER_US, NS_PER_MS, US_PER_MS = 1_000, 1_000_000, 1_000
#: Signal of a fired rule -> the verdict that it counts.
_COUNTED = {"stale_packets": Verdict.STALE, "duplicate_packets": Verdict.DUPLICATE}
_FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded decision, ready to be made again.

    Attributes:
        mail: what it was made from, in Redis's order. before: mail of the run that was handled on its own
            since the last decision (refused packets).
        command: what was decided. claimed_ns: when its packet was claimed, Unix ns. elapsed_us: time from then to
            the command.
        shared_until_ms: Redis's time up to which the shared tables had been read.
        failure: why the network had no say, "" where it had.
    """

    mail: Sequence[Verified] = field(repr=False)
    before: Sequence[Verified] = field(repr=False)
    command: AdaptationCommand
    claimed_ns: int
    elapsed_us: int
    shared_until_ms: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Steps:
    """The decisions of a recording, in order.

    ``unanswered``: packets that no command names though they were neither old nor seen before (the worker could
    not handle them, or decided them after the recording ends). ``unmatched``: commands on packets that the
    recording does not hold.
    """

    steps: Sequence[Step]
    unanswered: Sequence[str]
    unmatched: Sequence[str]


def group_steps(recording: VerifiedRecording) -> Steps:
    """Return the recording's decisions with their mail."""
    states = [item for item in recording.inputs if isinstance(item.message, SystemStatePacket)]
    seeds = [item for item in recording.inputs if not isinstance(item.message, SystemStatePacket)]
    offset_ms = _clock_offset_ms(states, recording.commands)
    sorting = _Sorting(states, seeds)
    steps, unmatched, committed_ms = [], [], 0
    for item in recording.commands:
        command = item.message
        assert isinstance(command, AdaptationCommand)  # noqa: S101 - VerifiedRecording holds nothing else there
        if not sorting.has(command.packet_id):
            unmatched.append(command.packet_id)
            continue
        claimed_ns = _claimed_ns(command)
        until_ms = max(claimed_ns // NS_PER_MS + offset_ms, committed_ms)
        before, mail = sorting.take(command, until_ms)
        steps.append(
            Step(
                mail=mail,
                before=before,
                command=command,
                claimed_ns=claimed_ns,
                elapsed_us=_elapsed_us(command),
                shared_until_ms=max(until_ms, mail[-1].at_ms),
                failure=_failure(command),
            )
        )
        committed_ms = item.at_ms
    return Steps(steps, [*sorting.unanswered, *sorting.left_over()], unmatched)


class _Sorting:
    """Deals a run's packets and seed exports out to its commands, in order."""

    def __init__(self, states: Sequence[Verified], seeds: Sequence[Verified]) -> None:
        self._states, self._seeds = list(states), list(seeds)
        self._index: dict[str, int] = {}
        for number, item in enumerate(states):
            self._index.setdefault(_packet(item).packet_id, number)
        self._next = self._next_seed = self._seeds_as_of = 0
        self._seen: set[str] = set()
        self._last_step = -1
        self.unanswered: list[str] = []

    def has(self, packet_id: str) -> bool:
        return self._index.get(packet_id, -1) >= self._next

    def take(self, command: AdaptationCommand, until_ms: int) -> tuple[list[Verified], list[Verified]]:
        """Return the mail that was refused before ``command``, and that which it answers."""
        answered = {command.packet_id, *command.superseded_packet_ids}
        refused_wanted = _refused(command)
        decided = self._index[command.packet_id]
        mail: list[Verified] = []
        refused: list[tuple[Verified, Verdict]] = []
        while self._next <= decided or self._is_refused_with(refused, refused_wanted):
            item = self._states[self._next]
            verdict = self._verdict(item, answered, self._index[_packet(item).packet_id] == self._next)
            self._next += 1
            if verdict is Verdict.ACCEPTED:
                mail.append(item)
            elif verdict is not None:
                refused.append((item, verdict))
        counted = _newest(refused, refused_wanted)
        mail += [item for item, _ in counted]
        mail += self._seeds_until(command, max(until_ms, self._states[decided].at_ms))
        mail.sort(key=lambda item: item.recorded.position)
        return [item for item, _ in refused if (item, _) not in counted], mail

    def left_over(self) -> list[str]:
        """Return the packets after the last decision."""
        return [_packet(item).packet_id for item in self._states[self._next :]]

    def _verdict(self, item: Verified, answered: set[str], first: bool) -> Verdict | None:
        """Return what became of the packet; None where a worker neither decided nor refused it."""
        packet, event_id = _packet(item), item.entry.event_id
        if event_id in self._seen:
            return Verdict.DUPLICATE
        if packet.global_step <= self._last_step:
            self._seen.add(event_id)
            return Verdict.STALE
        if not first or packet.packet_id not in answered:
            self.unanswered.append(packet.packet_id)
            return None
        self._seen.add(event_id)
        self._last_step = packet.global_step
        return Verdict.ACCEPTED

    def _is_refused_with(self, refused: Sequence[tuple[Verified, Verdict]], wanted: Mapping[Verdict, int]) -> bool:
        """Whether the next packet, behind the decided one, is one more of those that the command counts."""
        if self._next >= len(self._states):
            return False
        item = self._states[self._next]
        stale = _packet(item).global_step <= self._last_step
        verdict = Verdict.DUPLICATE if item.entry.event_id in self._seen else Verdict.STALE if stale else None
        return verdict is not None and sum(known is verdict for _, known in refused) < wanted.get(verdict, 0)

    def _seeds_until(self, command: AdaptationCommand, until_ms: int) -> list[Verified]:
        """Return the exports that ``command`` is the first to have seen; of equally old ones, what had arrived."""
        as_of, start = int(command.annotations.get(SEEDS_AS_OF, "0")), self._next_seed
        for item in self._seeds[start:]:
            exported = _exported_ns(item)
            if exported > as_of or (exported <= self._seeds_as_of and item.at_ms > until_ms):
                break
            self._seeds_as_of = max(self._seeds_as_of, exported)
            self._next_seed += 1
        return self._seeds[start : self._next_seed]


def _newest(
    refused: Sequence[tuple[Verified, Verdict]], wanted: Mapping[Verdict, int]
) -> list[tuple[Verified, Verdict]]:
    """Return so many of each verdict, the newest ones: the others had been handled before."""
    left = Counter(wanted)
    found = []
    for item in reversed(refused):
        if left[item[1]] > 0:
            left[item[1]] -= 1
            found.append(item)
    return found[::-1]


def _packet(item: Verified) -> SystemStatePacket:
    assert isinstance(item.message, SystemStatePacket)  # noqa: S101 - the caller sorted by type
    return item.message


def _exported_ns(item: Verified) -> int:
    assert isinstance(item.message, SeedExport)  # noqa: S101 - the caller sorted by type
    return item.message.timestamp_ns


def _claimed_ns(command: AdaptationCommand) -> int:
    return command.issued_at - _elapsed_us(command) * NS_PER_US


def _elapsed_us(command: AdaptationCommand) -> int:
    """Return the decision's latency; commands state it in ms with three digits, which is exact."""
    return round(float(command.annotations.get("decision_latency_ms", "0")) * US_PER_MS)


def _clock_offset_ms(states: Iterable[Verified], commands: Iterable[Verified]) -> int:
    """Return how far Redis's clock is ahead of the worker's: 0 where their times agree, else the least that fits.

    A packet is claimed after it was published, and a command is published after it was issued.
    """
    published = {_packet(item).packet_id: item.at_ms for item in states}
    least, most = [], []
    for item in commands:
        command = item.message
        if isinstance(command, AdaptationCommand) and command.packet_id in published:
            least.append(published[command.packet_id] - _claimed_ns(command) // NS_PER_MS)
            most.append(item.at_ms - command.issued_at // NS_PER_MS)
    if not least or max(least) <= 0 <= min(most):
        return 0
    return max(least) if max(least) > 0 else min(most)


def _refused(command: AdaptationCommand) -> dict[Verdict, int]:
    return {_COUNTED[rule["signal"]]: int(rule["value"]) for rule in _rules(command) if rule["signal"] in _COUNTED}


def _failure(command: AdaptationCommand) -> str:
    known = set(Failure)
    named = [rule["rule"] for rule in _rules(command) if rule["signal"] == _FAILURE and rule["rule"] in known]
    return named[0] if named else ""


def _rules(command: AdaptationCommand) -> list[dict[str, Any]]:
    try:
        told = json.loads(command.annotations.get("why", "{}")).get("rules", [])
        return [rule for rule in told if {"rule", "signal", "value"} <= rule.keys()]
    except (ValueError, AttributeError, TypeError):
        return []
