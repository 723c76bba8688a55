"""The states that an owner remembers: memory leads a Redis that forgot, never another owner's work."""

from __future__ import annotations

import pytest

from consumers.lease import Fence
from tamiyo_stream.runs.snapshot import encode_snapshot
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.worker.committed_states import CommittedStates


def state(last_step: int) -> bytes:
    return encode_snapshot(RunState(run_id="run", last_step=last_step))


def remembering(last_step: int, *, previous: str) -> CommittedStates:
    """A memory that committed ``last_step`` under the token ``mine`` and then took the lease after that."""
    states = CommittedStates(8)
    states.begin(Fence("fence", "mine", "somebody's"))
    states.keep("run", state(last_step))
    states.begin(Fence("fence", "mine again", previous))
    return states


@pytest.mark.parametrize(
    ("previous", "saved", "expected"),
    [
        ("", None, 7),  # Redis came back empty
        ("", 3, 7),  # and somebody restored an old copy
        ("mine", 3, 7),  # Redis came back older than it was
        ("mine", 9, 9),
        ("another's", 3, 3),  # another owner's word counts, even if the run was begun anew
        ("another's", None, 7),  # who knows nothing of the run
    ],
)
def test_the_state_to_go_on_from(previous, saved, expected) -> None:
    run = remembering(7, previous=previous).newest("run", state(saved) if saved is not None else None)
    assert run is not None
    assert run.last_step == expected


def test_a_run_that_neither_knows_has_no_state() -> None:
    assert remembering(7, previous="").newest("other", None) is None


def test_no_more_states_are_kept_than_runs_are_held() -> None:
    states = CommittedStates(2)
    for run_id in ("a", "b", "a", "c"):
        states.keep(run_id, run_id.encode())
    assert states.items() == [("a", b"a"), ("c", b"c")]
