"""What the owner of a partition remembers of its runs' saved states, against a Redis that forgets.

A Redis that comes back empty, or older than it was, has lost states that this worker committed. Without them a
step that is published again would be decided again. So the last committed state of each run stays in memory: of
two states of a run the one that is further on counts, and an emptied Redis is given them back.
"""

from __future__ import annotations

from collections import OrderedDict

from consumers.lease import Fence
from tamiyo_stream.runs.snapshot import decode_snapshot
from tamiyo_stream.runs.state import RunState


class CommittedStates:
    """The newest committed states of one partition, as saved; at most ``capacity``, the longest unused leaves."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._states: OrderedDict[str, bytes] = OrderedDict()
        self._token = ""
        self._leads = True

    def begin(self, fence: Fence) -> None:
        """A lease begins. Where nobody else owned the partition since the last one, memory may lead Redis.

        Nobody has where the fence still held our token, or none because Redis came back empty. Where somebody has,
        what they saved counts, and memory only for runs they know nothing of.
        """
        self._leads = fence.previous in {"", self._token}
        self._token = fence.token

    def keep(self, run_id: str, payload: bytes) -> None:
        """Remember ``payload``, committed for ``run_id``."""
        self._states[run_id] = payload
        self._states.move_to_end(run_id)
        while len(self._states) > self._capacity:
            self._states.popitem(last=False)

    def newest(self, run_id: str, saved: bytes | None) -> RunState | None:
        """Return the state to go on from, given the one that Redis holds; None where neither knows the run.

        Raises:
            SnapshotUnreadable: the saved state is damaged.
        """
        remembered = self._states.get(run_id)
        payloads = (saved,) if saved is not None and not self._leads else (saved, remembered)
        states = [decode_snapshot(payload) for payload in payloads if payload is not None]
        return max(states, key=lambda state: state.last_step, default=None)

    def items(self) -> list[tuple[str, bytes]]:
        """Return (run id, payload) of every state remembered."""
        return list(self._states.items())
