"""What the crucible measured, and the table that turns measurements into hazards (``domain.md`` §2.12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from schemas.enums import ResourceProfile

MEBIBYTE = 1024**2
GIBIBYTE = 1024**3

#: Above these the finding is made; the limits of Urabrask's crucible v1.
EXPLODING_RATIO = 1e3
VANISHING_RATIO = 1e-8
PRECISION_ERROR = 0.10
LOSS_STD = 0.05
WATERMARK_BYTES = 64 * MEBIBYTE
#: What an accelerator has to spare beside a host model.
OOM_BYTES = 4 * GIBIBYTE
#: A kernel is probed on 256 positions; a training batch of 64 sequences of 256 positions has 64 times as many.
KERNEL_BATCH_SCALE = 64
#: Training steps over which what a step leaves behind is extrapolated.
OOM_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Findings:
    """Raw measurements of one trial. NaN: not measured, as the trial ended early or a precision is not supported.

    Attributes:
        steps: that were run.
        gradient_ratio: largest gradient norm at the entry over that at the exit: a kernel's features and output, a
            host's first and last weight matrix.
        non_finite: a NaN or an infinity in outputs, loss or gradients.
        error_float32: error of the trained module in float32 against float64, relative to the response's norm.
        error_bfloat16: the same in bfloat16.
        loss_std: about its trend after burn-in, relative to the mean loss where that is above 1.
        peak_bytes: of the tensors a training step with Adam keeps alive, weights and inputs left out.
        growth_bytes: that one step leaves behind.
        batch_scale: batch in training over that of the trial.
        flops: floating-point operations of a training step.
        step_ms: median wall-clock time of a step, with the cost of counting.
    """

    steps: int
    gradient_ratio: float
    non_finite: bool
    error_float32: float
    error_bfloat16: float
    loss_std: float
    peak_bytes: int
    growth_bytes: float
    batch_scale: int
    flops: float
    step_ms: float

    @property
    def precision_error(self) -> float:
        """The larger of the two errors: a blueprint may be trained in either precision."""
        measured = [error for error in (self.error_float32, self.error_bfloat16) if not math.isnan(error)]
        return max(measured, default=math.nan)

    @property
    def projected_bytes(self) -> float:
        """Estimate of the need in training: the peak at the training batch, plus the growth of 1000 steps.

        An upper bound where gradients outweigh activations, for they do not grow with the batch; a lower one for
        attention, which grows with the square of the positions.
        """
        return self.peak_bytes * self.batch_scale + self.growth_bytes * OOM_STEPS


@dataclass(frozen=True, slots=True)
class Probe:
    """One way to fail. ``weight`` is what the finding adds to the risk."""

    hazard: str
    finding: str
    measure: Callable[[Findings], float]
    limit: float
    weight: float
    below: bool = False

    def finds(self, findings: Findings) -> bool | None:
        """Return whether the measurement is beyond the limit; None where there is none."""
        value = self.measure(findings)
        if math.isnan(value):
            return None
        return value < self.limit if self.below else value > self.limit


PROBES: tuple[Probe, ...] = (
    Probe("grad_instability", "explode", lambda found: found.gradient_ratio, EXPLODING_RATIO, 0.3),
    Probe("grad_instability", "vanish", lambda found: found.gradient_ratio, VANISHING_RATIO, 0.2, below=True),
    Probe("nan_inf", "present", lambda found: found.non_finite, 0.0, 0.6),
    Probe("precision", "sensitive", lambda found: found.precision_error, PRECISION_ERROR, 0.2),
    Probe("oscillation", "high", lambda found: found.loss_std, LOSS_STD, 0.2),
    Probe("memory_watermark", "high", lambda found: found.peak_bytes, WATERMARK_BYTES, 0.2),
    Probe("oom_risk", "risk", lambda found: found.projected_bytes, OOM_BYTES, 0.3),
)


def hazards_of(findings: Findings) -> dict[str, str]:
    """Return hazard -> finding, ``ok`` where nothing was found. What could not be measured is left out."""
    hazards: dict[str, str] = {}
    for probe in PROBES:
        found = probe.finds(findings)
        if found is not None and hazards.get(probe.hazard, "ok") == "ok":
            hazards[probe.hazard] = probe.finding if found else "ok"
    return hazards


def added_risk(findings: Findings) -> float:
    """Return the sum of the weights of what was found."""
    return sum(probe.weight for probe in PROBES if probe.finds(findings))


#: From this many operations a training step on the resource is recommended.
_PROFILES: tuple[tuple[float, ResourceProfile], ...] = ((1e9, ResourceProfile.GPU), (1e8, ResourceProfile.MIXED))


def resource_profile(findings: Findings) -> ResourceProfile:
    """Return what the blueprint mostly uses.

    Memory where its step is above the watermark; a GPU where its step is worth a launch (a billion operations);
    either one from a tenth of that; a CPU below.
    """
    if findings.peak_bytes > WATERMARK_BYTES:
        return ResourceProfile.MEMORY_HEAVY
    return next((profile for flops, profile in _PROFILES if findings.flops >= flops), ResourceProfile.CPU)


def notes_of(findings: Findings) -> str:
    """Return the measurements as one line for people."""
    measured = {
        "gradient ratio": f"{findings.gradient_ratio:.3g}",
        "error float32": f"{findings.error_float32:.2g}",
        "error bfloat16": f"{findings.error_bfloat16:.2g}",
        "loss std": f"{findings.loss_std:.3g}",
        "peak": f"{findings.peak_bytes / MEBIBYTE:.1f} MiB",
        "growth": f"{findings.growth_bytes / MEBIBYTE:.2f} MiB a step",
        "projected": f"{findings.projected_bytes / GIBIBYTE:.2f} GiB",
        "arithmetic": f"{findings.flops / 1e6:.0f} MFLOP a step",
        "time": f"{findings.step_ms:.1f} ms a step",
    }
    return f"{findings.steps} steps: " + ", ".join(f"{name} {value}" for name, value in measured.items())
