"""The state of one seed: its stage, the kernel that hangs at its site, and what was measured of both."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from schemas.enums import TelemetryLevel
from tamiyo_stream.upstream.kasmina.blending import BlendingSchedule
from tamiyo_stream.upstream.kasmina.lifecycle import BLENDED, Facts, Stage, require_move
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig
from tamiyo_stream.upstream.kasmina.site import PlacedSite
from tamiyo_stream.upstream.tolaria.ewma import ALPHA
from tamiyo_stream.upstream.tolaria.hooks import Timer

#: Events that wait for the next telemetry packet (``domain.md`` §2.14).
EVENT_CAPACITY = 64
#: Losses behind the means and spreads that gates compare.
LOSS_WINDOW = 32


@dataclass(frozen=True, slots=True)
class SeedEvent:
    """Something that happened to a seed; ``code`` is one of ``domain.md`` §2.14."""

    code: str
    level: TelemetryLevel
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SiteOutput:
    """What the site's output [..., width] looks like."""

    width: int
    dtype: torch.dtype
    device: torch.device


@dataclass(slots=True, eq=False)
class StageReadings:
    """What was measured since the stage began. Means move by :data:`~…tolaria.ewma.ALPHA`."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW))
    gradient_mean: float | None = None
    ratio_mean: float | None = None
    interface_checks: int = 0


@dataclass(slots=True, eq=False)
class Graft:
    """A kernel at a site. ``gradient`` and ``ratio`` are scalars [()] on the device, until a step reads them.

    ``epoch``: at germination; ``before``: losses from before it; ``blended_steps``: optimizer steps of its window.
    """

    blueprint_id: str
    kernel: nn.Module
    schedule: BlendingSchedule
    blend: BlendConfig
    policy_version: str
    epoch: int | None
    before: tuple[float, ...]
    handle: RemovableHandle | None = None
    blended_steps: int = 0
    gradient: torch.Tensor | None = None
    ratio: torch.Tensor | None = None
    timer: Timer | None = None
    gradient_norm: float | None = None
    latency_ms: float | None = None
    latency_mean_ms: float | None = None
    readings: StageReadings = field(default_factory=StageReadings)


class Seed:
    """One seed. Its stage changes by :meth:`move` only.

    ``departed`` is the kernel that left last, until G5 has seen that nothing of it remained; ``learning`` the hook
    that waits for the site's first output.
    """

    def __init__(self, placed: PlacedSite) -> None:
        self.placed = placed
        self.stage = Stage.UNKNOWN
        self.output: SiteOutput | None = None
        self.graft: Graft | None = None
        self.departed: nn.Module | None = None
        self.learning: RemovableHandle | None = None
        self.paused = False
        self.steps_in_stage = 0
        self.embargoed_until = -math.inf
        self.fossilized = self.failed = 0
        self.fallback_used = False
        self.events: deque[SeedEvent] = deque()
        self.events_dropped = 0

    @property
    def seed_id(self) -> str:
        """Unique within the run."""
        return self.placed.site.seed_id

    @property
    def alpha(self) -> float:
        """Alpha in force: the schedule's while blending, 1 afterwards, 0 without kernel and while paused."""
        if self.graft is None or self.paused or self.stage not in BLENDED:
            return 0.0
        if self.stage is Stage.BLENDING:
            return self.graft.schedule.alpha(self.graft.blended_steps)
        return 1.0

    @property
    def success_rate(self) -> float:
        """Laplace's rule: (fossilized + 1) / (finished grafts + 2), thus one half before the first."""
        return (self.fossilized + 1) / (self.fossilized + self.failed + 2)

    def move(self, target: Stage, reason: str = "") -> None:
        """Enter ``target``, note it as an event, and start measuring anew.

        Raises:
            IllegalMove: Leyline has no such move.
        """
        require_move(self.seed_id, self.stage, target)
        attributes = {"from": self.stage.name, "to": target.name} | ({"reason": reason} if reason else {})
        self.note("seed_stage", **attributes)
        self.fossilized += target is Stage.FOSSILIZED
        self.failed += target is Stage.CULLED
        self.stage, self.steps_in_stage = target, 0
        if self.graft is not None:
            self.graft.readings = StageReadings()

    def note(self, code: str, level: TelemetryLevel = TelemetryLevel.INFO, /, **attributes: str) -> None:
        """Keep an event for the next telemetry packet; the oldest leaves where too many wait."""
        if len(self.events) == EVENT_CAPACITY:
            self.events.popleft()
            self.events_dropped += 1
        self.events.append(SeedEvent(code, level, attributes))

    def take_events(self) -> list[SeedEvent]:
        """Return the waiting events, and one that tells how many had to leave."""
        events, self.events = list(self.events), deque()
        if self.events_dropped:
            dropped = {"dropped": str(self.events_dropped)}
            events.append(SeedEvent("seed_queue_dropped", TelemetryLevel.WARNING, dropped))
            self.events_dropped = 0
        return events

    def facts(self) -> Facts:
        """Return what was measured, as the gates of a grafted seed need it."""
        graft = self.graft
        if graft is None:
            return Facts(risk_tolerance=self.placed.site.risk_tolerance)
        readings, before = graft.readings, graft.before
        return Facts(
            gradient_norm=readings.gradient_mean,
            loss=statistics.fmean(readings.losses) if readings.losses else None,
            loss_before=statistics.fmean(before) if before else None,
            spread=_spread(readings.losses),
            spread_before=_spread(before),
            norm_ratio=readings.ratio_mean,
            interface_checks=readings.interface_checks,
            risk_tolerance=self.placed.site.risk_tolerance,
        )


def _spread(losses: deque[float] | tuple[float, ...]) -> float | None:
    # statistics.stdev of infinities raises; a loss that diverged has an infinite spread.
    if len(losses) < 2:
        return None
    return statistics.stdev(losses) if all(map(math.isfinite, losses)) else math.inf


def moving_mean(mean: float | None, sample: float) -> float:
    """Return the exponentially weighted mean after ``sample``; one that is not finite shows at once."""
    if mean is None or not math.isfinite(sample):
        return sample
    return mean + ALPHA * (sample - mean)
