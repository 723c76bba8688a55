"""Observation windows: what happens to a run in the epochs after a command (domain.md §7). Pure functions.

A window opens on each SEED and OPTIMIZER command and closes when ``target_epochs`` true epochs have begun since;
the deciding step itself is not part of it. At most so many are open; what is closed before its time was never
observed to the end, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from msgspec.structs import replace

from schemas.enums import CommandType
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.runs.intake import finite
from tamiyo_stream.runs.state import ObservationWindow

NS_PER_S = 1_000_000_000
#: Commands that are meant to change something, and are watched for it.
OBSERVED_COMMANDS = frozenset({CommandType.SEED, CommandType.OPTIMIZER})


@dataclass(frozen=True, slots=True)
class WindowRules:
    """How long a command is observed, and how many may be at once.

    ``target_epochs`` 0 switches observation off; ``expiry_s`` closes what no epoch ever closes.
    """

    target_epochs: int = 3
    max_open: int = 64
    expiry_s: int = 86_400

    def __post_init__(self) -> None:
        for name, least in (("target_epochs", 0), ("max_open", 1), ("expiry_s", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")


DEFAULT_RULES = WindowRules()


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a later step shows to every open window. ``now`` is Unix ns; None = not known."""

    epoch: int
    now: int
    loss_delta: float | None = None
    hook_latency_ms: float | None = None
    critical: bool = False


class Ending(StrEnum):
    """Why a window closed."""

    COMPLETE = "complete"
    EXPIRED = "expired"
    DISPLACED = "displaced"
    NOT_EXECUTED = "not_executed"


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that is over; only a COMPLETE one saw all of its epochs."""

    window: ObservationWindow
    ending: Ending


@dataclass(frozen=True, slots=True)
class WindowChange:
    """The open windows by command id, oldest first, and those that closed. What was given is never changed."""

    windows: dict[str, ObservationWindow]
    closed: tuple[ClosedWindow, ...] = ()


def open_window(
    windows: Mapping[str, ObservationWindow],
    command: AdaptationCommand,
    *,
    reason: str,
    policy_version: str,
    epoch: int,
    rules: WindowRules = DEFAULT_RULES,
) -> WindowChange:
    """Return the windows with one for ``command``, where it is a kind that is observed; the oldest make room."""
    if rules.target_epochs == 0 or command.command_type not in OBSERVED_COMMANDS or command.command_id in windows:
        return WindowChange(dict(windows))
    operation = command.seed_operation
    opened = ObservationWindow(
        command_id=command.command_id,
        seed_id=command.target_seed_id,
        blueprint_id=operation.blueprint_id if operation is not None else "",
        policy_version=policy_version,
        reason=reason,
        start_epoch=epoch,
        target_epochs=rules.target_epochs,
        issued_at=command.issued_at,
    )
    ordered = [*windows.values(), opened]
    displaced = ordered[: -rules.max_open]
    return WindowChange(_by_command(ordered[-rules.max_open :]), _closed(displaced, Ending.DISPLACED))


def observe(
    windows: Mapping[str, ObservationWindow], step: StepOutcome, rules: WindowRules = DEFAULT_RULES
) -> WindowChange:
    """Return the windows after a step: those whose epochs are over close, the others take the step in."""
    complete = [window for window in windows.values() if _is_complete(window, step)]
    expired = [
        window
        for window in windows.values()
        if not _is_complete(window, step) and step.now - window.issued_at >= rules.expiry_s * NS_PER_S
    ]
    over = {window.command_id for window in (*complete, *expired)}
    still_open = [_taking_in(window, step) for window in windows.values() if window.command_id not in over]
    return WindowChange(
        _by_command(still_open), (*_closed(complete, Ending.COMPLETE), *_closed(expired, Ending.EXPIRED))
    )


def abandon(windows: Mapping[str, ObservationWindow], command_ids: Iterable[str]) -> WindowChange:
    """Return the windows without those of commands that the executor refused or never carried out."""
    dropped = set(command_ids)
    gone = [window for window in windows.values() if window.command_id in dropped]
    kept = [window for window in windows.values() if window.command_id not in dropped]
    return WindowChange(_by_command(kept), _closed(gone, Ending.NOT_EXECUTED))


def _is_complete(window: ObservationWindow, step: StepOutcome) -> bool:
    return step.epoch >= window.start_epoch + window.target_epochs


def _taking_in(window: ObservationWindow, step: StepOutcome) -> ObservationWindow:
    delta, latency = finite(step.loss_delta), finite(step.hook_latency_ms)
    changed = replace(window, had_critical=window.had_critical or step.critical)
    if delta is not None:
        first = window.steps == 0
        changed.loss_delta_sum = window.loss_delta_sum + delta
        changed.loss_delta_min = delta if first else min(window.loss_delta_min, delta)
        changed.loss_delta_max = delta if first else max(window.loss_delta_max, delta)
        changed.steps = window.steps + 1
    if latency is not None:
        changed.hook_latency_sum = window.hook_latency_sum + latency
        changed.hook_latency_count = window.hook_latency_count + 1
    return changed


def _by_command(windows: Iterable[ObservationWindow]) -> dict[str, ObservationWindow]:
    return {window.command_id: window for window in windows}


def _closed(windows: Iterable[ObservationWindow], ending: Ending) -> tuple[ClosedWindow, ...]:
    return tuple(ClosedWindow(window, ending) for window in windows)
