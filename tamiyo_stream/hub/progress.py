"""Liveness means progress (design §10): stages tick, and no step stays in flight for long.

Times are ``time.monotonic()`` seconds, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Condition that stands while Redis does not answer.
BUS = "redis"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all is well, and if not, why."""

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Stage:
    """One loop of the worker. ``limit_s``: the longest it may be silent; it ticks also where there is no work."""

    name: str
    limit_s: float
    ticked_at: float
    ticks: int = 0

    def tick(self, now: float) -> None:
        """Say that the stage is alive."""
        self.ticked_at = now
        self.ticks += 1


@dataclass(slots=True)
class Progress:
    """What the worker's stages are doing. ``step_limit_s``: the longest a claimed step may stay unanswered.

    ``unready``: what stands between this worker and its work, by condition, as ``lease``. Started once
    :attr:`started` is set.
    """

    step_limit_s: float = 30.0
    started: bool = False
    stages: dict[str, Stage] = field(default_factory=dict)
    unready: dict[str, str] = field(default_factory=dict)
    _in_flight: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, limit_s: float, now: float) -> Stage:
        """Return the stage ``name``, watched from ``now`` on."""
        self.stages[name] = Stage(name, limit_s, now)
        return self.stages[name]

    def retire(self, name: str) -> None:
        """Stop watching a stage that ended as it should."""
        self.stages.pop(name, None)

    def claimed(self, key: str, now: float) -> None:
        """Say that the entry ``key`` is in flight; a second time keeps the first time's moment."""
        self._in_flight.setdefault(key, now)

    def settled(self, key: str) -> None:
        """Say that the entry ``key`` is committed, or handed back."""
        self._in_flight.pop(key, None)

    def ready(self, condition: str) -> None:
        """Say that ``condition`` no longer stands in the way."""
        self.unready.pop(condition, None)

    def waits_for(self, condition: str, why: str) -> None:
        """Say that the worker cannot claim because of ``condition``."""
        self.unready[condition] = why

    @property
    def in_flight(self) -> int:
        """Entries claimed and not yet settled."""
        return len(self._in_flight)

    def oldest_s(self, now: float) -> float:
        """Return for how long the oldest entry has been in flight; 0 without one."""
        # A copy, made in one go: a scrape asks from another thread.
        return max((now - since for since in list(self._in_flight.values())), default=0.0)

    def bus_away(self, why: str) -> None:
        """Say that Redis does not answer: nobody can make progress, and a restart would not help."""
        self.unready[BUS] = why

    def bus_back(self, now: float) -> None:
        """Say that Redis answers again; what stood still meanwhile starts anew."""
        if self.unready.pop(BUS, None) is None:
            return
        for stage in self.stages.values():
            stage.tick(now)
        self._in_flight = dict.fromkeys(self._in_flight, now)

    def live(self, now: float) -> Verdict:
        """Return whether the worker makes progress; while Redis is away it is not to blame for having none."""
        if BUS in self.unready:
            return Verdict(True)
        reasons = [
            f"stage {stage.name} has not ticked for {now - stage.ticked_at:.1f} s (limit {stage.limit_s:g} s)"
            for stage in list(self.stages.values())
            if now - stage.ticked_at > stage.limit_s
        ]
        oldest = self.oldest_s(now)
        if oldest > self.step_limit_s:
            reasons.append(f"a step is in flight for {oldest:.1f} s (limit {self.step_limit_s:g} s)")
        return Verdict(not reasons, tuple(reasons))

    def readiness(self, now: float) -> Verdict:
        """Return whether the worker can claim work."""
        if not self.started:
            return Verdict(False, ("starting",))
        waits = tuple(f"{condition}: {why}" for condition, why in list(self.unready.items()))
        reasons = (*waits, *self.live(now).reasons)
        return Verdict(not reasons, reasons)

    def startup(self) -> Verdict:
        """Return whether the worker has started: models loaded, tables caught up."""
        return Verdict(True) if self.started else Verdict(False, ("starting",))
