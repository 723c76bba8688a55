"""The action table: what each of the network's 32 policy slots means (design §9).

Kernel slots follow the order of the catalogue in the graph, so slot 8 + k germinates candidate kernel k. What a
slot's four parameters mean, and in which bounds they take effect, says :mod:`tamiyo_stream.policy.parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.enums import CommandType

NUM_ACTIONS = 32
FIRST_KERNEL_SLOT = 8


class Action(StrEnum):
    """What a slot does."""

    GRAFT = "graft"
    OPTIMIZER = "optimizer"
    PAUSE = "pause"
    BREAKER_OPEN = "breaker_open"
    BREAKER_CLOSE = "breaker_close"
    CULL = "cull"
    RESUME = "resume"
    HOLD = "hold"
    GERMINATE = "germinate"


#: The command that carries an action. PAUSE without a target is the documented no-op (domain.md §4.7), so it also
#: carries "hold"; a resume is a PAUSE whose annotation ``resume`` says so (domain.md §2.6).
COMMAND_TYPES: dict[Action, CommandType] = {
    Action.GRAFT: CommandType.SEED,
    Action.OPTIMIZER: CommandType.OPTIMIZER,
    Action.PAUSE: CommandType.PAUSE,
    Action.BREAKER_OPEN: CommandType.CIRCUIT_BREAKER,
    Action.BREAKER_CLOSE: CommandType.CIRCUIT_BREAKER,
    Action.CULL: CommandType.SEED,
    Action.RESUME: CommandType.PAUSE,
    Action.HOLD: CommandType.PAUSE,
    Action.GERMINATE: CommandType.SEED,
}
#: Actions that put a kernel into a seed: what the risk rules on grafts are about.
GRAFTING = frozenset({Action.GRAFT, Action.GERMINATE})


@dataclass(frozen=True, slots=True)
class Slot:
    """One row: ``kernel`` is the catalogue position that a germinate slot names."""

    index: int
    action: Action
    kernel: int | None = None


_CONTROL = (
    Action.GRAFT,
    Action.OPTIMIZER,
    Action.PAUSE,
    Action.BREAKER_OPEN,
    Action.BREAKER_CLOSE,
    Action.CULL,
    Action.RESUME,
    Action.HOLD,
)
ACTION_TABLE: tuple[Slot, ...] = (
    *(Slot(index, action) for index, action in enumerate(_CONTROL)),
    *(Slot(index, Action.GERMINATE, index - FIRST_KERNEL_SLOT) for index in range(FIRST_KERNEL_SLOT, NUM_ACTIONS)),
)
#: Control slots by action; germinate slots are named by their kernel instead.
CONTROL_SLOTS: dict[Action, Slot] = {slot.action: slot for slot in ACTION_TABLE[:FIRST_KERNEL_SLOT]}
