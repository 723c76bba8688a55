"""The action table: what each of the network's 32 policy slots means (design §9).

Kernel slots follow the order of the catalogue in the graph, so slot 8 + k germinates candidate kernel k.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
