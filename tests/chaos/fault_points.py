"""Points of a worker's work at which it can be made to die, from outside: the worker knows nothing of them.

A point is a call. The process that :func:`arm` was called in is ended by SIGKILL before that call, or as soon as
it has returned: nothing of it reaches the worker any more, as when the process dies on the way back.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import producers.commit
from consumers.group import ConsumerGroup
from consumers.lease import PartitionLease
from producers.commit import Commit, Committer
from tamiyo_stream.worker.steps import StepProcessor

#: What a struck worker writes last.
STRUCK = "killed at the point"


@dataclass(frozen=True, slots=True)
class Point:
    """A call ``name`` of ``owner``.

    Attributes:
        after: die once it has returned, else before it is made.
        nth: the call of those that count at which to die; the earlier ones show that the worker is at work.
        counts: whether a call counts, by its arguments and, afterwards, its result.
    """

    owner: Any
    name: str
    after: bool
    nth: int
    counts: Callable[[tuple[Any, ...], Any], bool] = lambda _arguments, _result: True


def _of_a_step(arguments: tuple[Any, ...], _: Any) -> bool:
    commit = _commit_of(arguments)
    return commit.state is not None and bool(commit.acknowledgements)


def _of_a_refusal(arguments: tuple[Any, ...], _: Any) -> bool:
    commit = _commit_of(arguments)
    return commit.state is None and bool(commit.acknowledgements)


def _commit_of(arguments: tuple[Any, ...]) -> Commit:
    return next(value for value in arguments if isinstance(value, Commit))


POINTS = {
    "lease_taken": Point(PartitionLease, "acquire", after=True, nth=1, counts=lambda _, fence: fence is not None),
    "claimed": Point(ConsumerGroup, "claim", after=True, nth=5, counts=lambda _, claimed: bool(claimed)),
    "decided": Point(StepProcessor, "process", after=True, nth=9),
    # The fence is watched and everything queued on our side; EXEC is not sent.
    "before_exec": Point(producers.commit, "_queue", after=True, nth=9, counts=_of_a_step),
    # EXEC is carried out; nobody here learns of it.
    "after_exec": Point(Committer, "_attempt", after=True, nth=9, counts=_of_a_step),
    "refusal_before_exec": Point(producers.commit, "_queue", after=True, nth=2, counts=_of_a_refusal),
    "refusal_after_exec": Point(Committer, "_attempt", after=True, nth=2, counts=_of_a_refusal),
    # The new norms file is written beside the old one, which still has its name.
    "norms_written": Point(Path, "replace", after=False, nth=2, counts=lambda it, _: "gnn_norms" in it[0].name),
}


def arm(name: str) -> None:
    """Let this process die at the point ``name``."""
    point = POINTS[name]
    original = getattr(point.owner, point.name)
    calls = 0

    def strike(arguments: tuple[Any, ...], result: Any = None) -> None:
        nonlocal calls
        calls += point.counts(arguments, result)
        if calls >= point.nth:
            os.write(2, f"{STRUCK} {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    async def awaited(*arguments: Any) -> Any:
        if not point.after:
            strike(arguments)
        result = await original(*arguments)
        if point.after:
            strike(arguments, result)
        return result

    @functools.wraps(original)
    def called(*arguments: Any) -> Any:
        if not point.after:
            strike(arguments)
        result = original(*arguments)
        if point.after:
            strike(arguments, result)
        return result

    setattr(point.owner, point.name, awaited if inspect.iscoroutinefunction(original) else called)
