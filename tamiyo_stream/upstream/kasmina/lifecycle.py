"""The life of a seed as tables: which stage follows which, after how long, and what each gate asks for.

The moves that exist at all are Leyline's (:data:`schemas.enums.LEGAL_TRANSITIONS`). :data:`PASSAGES` says which of
them a seed makes by itself, :data:`CHECKS` what must be true of the measured facts on the way. Gates come in
Leyline's order: G0 before a kernel is grafted, G1 before it blends, G2 and G3 before it counts as part of the
model, G4 before it stays for good, G5 before its place is free again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from schemas.enums import LEGAL_TRANSITIONS, SeedLifecycleGate, SeedLifecycleStage

Stage = SeedLifecycleStage
Gate = SeedLifecycleGate

#: Stages in which a kernel hangs at the site.
ATTACHED = frozenset(
    {Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED}
)
#: Stages in which the kernel's output reaches the host.
BLENDED = frozenset({Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED})


class IllegalMove(ValueError):
    """The seed's stage does not allow what was asked for."""


class GateFailed(RuntimeError):
    """A gate turned the seed away. ``reason`` is the machine code of the check that failed."""

    def __init__(self, seed_id: str, gate: Gate, reason: str, detail: str = "") -> None:
        super().__init__(f"seed {seed_id!r} failed {gate.name}: {reason}{': ' if detail else ''}{detail}")
        self.gate = gate
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """How long stages last and where gates draw the line.

    Attributes:
        baseline_steps: losses that must be known before a seed may germinate.
        training_steps: steps a kernel trains before G1.
        blending_steps: length of the blending window.
        shadowing_steps: steps at full alpha before G3.
        probation_steps: steps before G4.
        embargo_s: seconds from a cull until the site may be used again (``domain.md`` §2.14).
        gradient_max: a kernel's gradient norm above it explodes (``domain.md`` §2.12).
        gradient_min: below it, it has vanished.
        norm_ratio_max: norm of what the kernel changes over the host's norm.
        spread_ratio_max: standard deviation of the loss over that before germination.
        regression_max: relative rise of the loss over that before germination, at a risk tolerance of 1.
    """

    baseline_steps: int = 5
    training_steps: int = 50
    blending_steps: int = 20
    shadowing_steps: int = 20
    probation_steps: int = 50
    embargo_s: float = 30.0
    gradient_max: float = 1e3
    gradient_min: float = 1e-8
    norm_ratio_max: float = 10.0
    spread_ratio_max: float = 5.0
    regression_max: float = 0.2


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a seed and its run; None = not measured yet, and the checks that need it wait.

    Attributes:
        width: channels of the site.
        quarantine_only: of the site.
        kernel_known: the blueprint is in the library.
        kernel_error: what building the kernel failed with, empty where it did not.
        parameters: trainable tensors of the kernel.
        parameters_finite: whether all of their values are.
        baseline_steps: losses known from before germination.
        schedulers_known: no learning-rate scheduler would stumble over a new parameter group.
        processes: that train the model together.
        gradient_norm: moving mean over the stage.
        loss: mean over the stage.
        loss_before: mean before germination.
        spread: standard deviation of the loss over the stage.
        spread_before: the same before germination.
        norm_ratio: moving mean of the kernel's change over the host's output, by norm.
        interface_checks: outputs compared with the host's in the stage.
        risk_tolerance: of the site, 0..1.
        kernel_attached: a kernel still hangs at the site.
        parameters_left: kernel tensors still in the optimizer.
    """

    width: int | None = None
    quarantine_only: bool = False
    kernel_known: bool = True
    kernel_error: str = ""
    parameters: int = 0
    parameters_finite: bool = True
    baseline_steps: int = 0
    schedulers_known: bool = True
    processes: int = 1
    gradient_norm: float | None = None
    loss: float | None = None
    loss_before: float | None = None
    spread: float | None = None
    spread_before: float | None = None
    norm_ratio: float | None = None
    interface_checks: int = 0
    risk_tolerance: float = 0.5
    kernel_attached: bool = False
    parameters_left: int = 0

    @property
    def regression(self) -> float | None:
        """Relative rise of the loss since before germination; None where either is unknown."""
        if self.loss is None or self.loss_before is None:
            return None
        return (self.loss - self.loss_before) / max(abs(self.loss_before), 1e-12)

    @property
    def spread_ratio(self) -> float | None:
        """Spread of the loss over the larger of that before and a twentieth of the loss: a floor against luck."""
        if self.spread is None or self.spread_before is None or self.loss_before is None:
            return None
        return self.spread / max(self.spread_before, 0.05 * abs(self.loss_before), 1e-12)


#: True = passed, False = failed, None = cannot be said yet.
Condition = Callable[[Facts, Limits], bool | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a gate and the reason code where it fails."""

    gate: Gate
    reason: str
    condition: Condition


def _at_most(value: float | None, limit: float) -> bool | None:
    return None if value is None else value <= limit


CHECKS: tuple[Check, ...] = (
    Check(Gate.G0_SANITY, "seed_quarantined", lambda facts, _: not facts.quarantine_only),
    Check(Gate.G0_SANITY, "kernel_unknown", lambda facts, _: facts.kernel_known),
    Check(Gate.G0_SANITY, "site_width_unknown", lambda facts, _: facts.width is not None),
    Check(Gate.G0_SANITY, "kernel_build_failed", lambda facts, _: not facts.kernel_error),
    Check(Gate.G0_SANITY, "kernel_without_parameters", lambda facts, _: facts.parameters > 0),
    Check(Gate.G0_SANITY, "kernel_parameters_not_finite", lambda facts, _: facts.parameters_finite),
    Check(
        Gate.G0_SANITY, "loss_before_unknown", lambda facts, limit: facts.baseline_steps >= limit.baseline_steps
    ),
    # torch's schedulers raise where the optimizer has more groups than they know.
    Check(Gate.G0_SANITY, "scheduler_not_given", lambda facts, _: facts.schedulers_known),
    # Nothing would keep the kernels of several processes equal.
    Check(Gate.G0_SANITY, "distributed_training", lambda facts, _: facts.processes == 1),
    Check(
        Gate.G1_GRADIENT_HEALTH,
        "gradient_not_finite",
        lambda facts, _: None if facts.gradient_norm is None else math.isfinite(facts.gradient_norm),
    ),
    Check(
        Gate.G1_GRADIENT_HEALTH,
        "gradient_exploding",
        lambda facts, limit: _at_most(facts.gradient_norm, limit.gradient_max),
    ),
    Check(
        Gate.G1_GRADIENT_HEALTH,
        "gradient_vanished",
        lambda facts, limit: None if facts.gradient_norm is None else facts.gradient_norm >= limit.gradient_min,
    ),
    Check(
        Gate.G2_STABILITY,
        "loss_not_finite",
        lambda facts, _: None if facts.loss is None else math.isfinite(facts.loss),
    ),
    Check(
        Gate.G2_STABILITY,
        "loss_unstable",
        lambda facts, limit: _at_most(facts.spread_ratio, limit.spread_ratio_max),
    ),
    Check(
        Gate.G2_STABILITY,
        "kernel_dominates",
        lambda facts, limit: _at_most(facts.norm_ratio, limit.norm_ratio_max),
    ),
    # An output of another shape or type ends the graft at once; here it must have been seen to fit.
    Check(Gate.G3_INTERFACE, "interface_unproven", lambda facts, _: facts.interface_checks > 0 or None),
    Check(
        Gate.G4_SYSTEM_IMPACT,
        "loss_regression",
        lambda facts, limit: _at_most(facts.regression, limit.regression_max * facts.risk_tolerance),
    ),
    Check(Gate.G5_RESET, "kernel_still_attached", lambda facts, _: not facts.kernel_attached),
    Check(Gate.G5_RESET, "parameters_still_in_optimizer", lambda facts, _: not facts.parameters_left),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says: passed, failed (with the reason), or neither as long as a fact is missing."""

    passed: bool | None
    reason: str = ""


def judge(gate: Gate, facts: Facts, limits: Limits) -> Verdict:
    """Return the verdict of ``gate``: the first check that fails, else the first that must wait, else passed."""
    waiting = ""
    for check in CHECKS:
        if check.gate is gate:
            passed = check.condition(facts, limits)
            if passed is False:
                return Verdict(False, check.reason)
            waiting = waiting or (check.reason if passed is None else "")
    return Verdict(None, waiting) if waiting else Verdict(True)


@dataclass(frozen=True, slots=True)
class Passage:
    """A move that a seed makes by itself, after ``steps`` steps of its stage, through ``gate``."""

    target: Stage
    gate: Gate
    steps: Callable[[Limits], int] = lambda _: 1


def _seen(_: Limits) -> int:
    """Two steps: stages that operations between steps begin would else be over before they were exported."""
    return 2


#: Gate UNKNOWN = none. EMBARGOED also waits for its time, FOSSILIZED and TERMINATED stay.
PASSAGES: Mapping[Stage, Passage] = {
    Stage.GERMINATED: Passage(Stage.TRAINING, Gate.UNKNOWN, _seen),
    Stage.TRAINING: Passage(Stage.BLENDING, Gate.G1_GRADIENT_HEALTH, lambda limits: limits.training_steps),
    Stage.BLENDING: Passage(Stage.SHADOWING, Gate.G2_STABILITY, lambda limits: limits.blending_steps),
    Stage.SHADOWING: Passage(Stage.PROBATIONARY, Gate.G3_INTERFACE, lambda limits: limits.shadowing_steps),
    Stage.PROBATIONARY: Passage(Stage.FOSSILIZED, Gate.G4_SYSTEM_IMPACT, lambda limits: limits.probation_steps),
    Stage.CULLED: Passage(Stage.EMBARGOED, Gate.UNKNOWN, _seen),
    Stage.EMBARGOED: Passage(Stage.RESETTING, Gate.UNKNOWN),
    Stage.RESETTING: Passage(Stage.DORMANT, Gate.G5_RESET),
}


def require_move(seed_id: str, stage: Stage, target: Stage) -> None:
    """Check that Leyline allows ``stage`` → ``target``.

    Raises:
        IllegalMove: naming the seed, its stage and the moves it has.
    """
    if target not in LEGAL_TRANSITIONS[stage]:
        moves = ", ".join(sorted(move.name for move in LEGAL_TRANSITIONS[stage])) or "none"
        raise IllegalMove(f"seed {seed_id!r} is {stage.name} and cannot become {target.name}; its moves: {moves}")


def risk_of(facts: Facts, limits: Limits) -> float:
    """Return how near a grafted seed is to the limit of a gate, 0..1: the nearest counts, 1 = at or beyond it."""
    shares = (
        _share(facts.gradient_norm, limits.gradient_max),
        _share(facts.norm_ratio, limits.norm_ratio_max),
        _share(facts.spread_ratio, limits.spread_ratio_max),
        _share(facts.regression, limits.regression_max * facts.risk_tolerance),
    )
    return max(shares)


def _share(value: float | None, limit: float) -> float:
    if value is None:
        return 0.0
    if not math.isfinite(value):
        return 1.0
    return min(max(value / limit, 0.0), 1.0) if limit > 0 else float(value > 0)
