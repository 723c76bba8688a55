"""The risk table: every rule as one row, evaluated in one pass (domain.md §5.1).

The table's order settles which reason is given where several rules ask for the same action: what kept the network
from answering first, then domain.md's own order, and conservative mode last, so that a cause is named before the
mode it led to. In domain.md every SEED command is a germination; here a cull is one too, and removing a kernel is
what a risk calls for: the rules on SEED commands are about grafts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from schemas.enums import CircuitBreakerState, EmergencyLevel, HandlingClass, HazardBand, TelemetryLevel
from tamiyo_stream.policy.failures import Failure
from tamiyo_stream.policy.rules import Comparison, Condition, Downgrade, RiskRule


def _above(signal: str, threshold: str) -> Condition:
    return Condition(signal, Comparison.ABOVE, threshold)


def _at_least(signal: str, threshold: str) -> Condition:
    return Condition(signal, Comparison.AT_LEAST, threshold)


def _at_most(signal: str, threshold: str) -> Condition:
    return Condition(signal, Comparison.AT_MOST, threshold)


def _below(signal: str, threshold: str) -> Condition:
    return Condition(signal, Comparison.BELOW, threshold)


def _is(signal: str, value: object) -> Condition:
    return Condition(signal, Comparison.IS, value=value)


def _some(signal: str) -> Condition:
    """Return the condition that the count ``signal`` is not zero."""
    return Condition(signal, Comparison.ABOVE, value=0)


_INFO, _WARNING = TelemetryLevel.INFO, TelemetryLevel.WARNING
_ERROR, _CRITICAL = TelemetryLevel.ERROR, TelemetryLevel.CRITICAL
_GRAFTS = _is("grafts", True)
_GPU_PRESSURE = (_at_least("gpu_util_percent", "gpu_util_percent"), _at_most("gpu_free_gb", "gpu_free_gb"))


def _rule(  # noqa: PLR0913 - the columns of a row
    action: Downgrade,
    number: int,
    event: str,
    *when: Condition,
    level: TelemetryLevel = _WARNING,
    reason: str | None = None,
    unless: tuple[Condition, ...] = (),
    enters: bool = False,
    grafts_only: bool = False,
    **shows: str,
) -> RiskRule:
    """Return a row; where no ``reason`` is given the event's name is one. ``shows``: event attribute = signal."""
    return RiskRule(
        number=number,
        event=event,
        when=when,
        level=level,
        action=action,
        reason=event if reason is None else reason,
        conservative=enters,
        acts_on_grafts=grafts_only,
        unless=unless,
        attributes=tuple(shows.items()),
    )


_pause = partial(_rule, Downgrade.PAUSE)
_downgrade = partial(_rule, Downgrade.OPTIMIZER)
_give_reason = partial(_rule, Downgrade.NONE)
_report = partial(_rule, Downgrade.NONE, reason="")


def _failed(failure: Failure, level: TelemetryLevel, *, number: int = 0, enters: bool = False) -> RiskRule:
    """Return the row of a failure: whatever it is, the answer is a pause that changes nothing."""
    return _pause(number, failure.value, _is("failure", failure.value), level=level, enters=enters)


def _not_compiled(event: str, cause: str, level: TelemetryLevel) -> RiskRule:
    """Return the row of one cause why the network does not run compiled."""
    row = _report(19, event, _is("compile_reason", cause), level=level, device="compile_device")
    return _telling_reason(row, "compile_reason")


def _telling_reason(row: RiskRule, signal: str) -> RiskRule:
    """Return ``row`` with ``signal`` as the event attribute ``reason``, which is not the row's own reason."""
    return replace(row, attributes=(("reason", signal), *row.attributes))


#: What kept the network from an answer, or makes any answer pointless. A single late step only pauses: three in a
#: row open the breaker, and that enters conservative mode (the prototype's entry per late step lasted one step).
_FAILURES: tuple[RiskRule, ...] = (
    _pause(0, "loss_not_finite", _is("loss_finite", False), level=_CRITICAL, enters=True),
    replace(_failed(Failure.TIMEOUT_INFERENCE, _WARNING, number=3), attributes=(("budget_ms", "budget_ms"),)),
    _failed(Failure.BREAKER_OPEN, _WARNING, enters=True),
    _failed(Failure.MODEL_MISSING, _ERROR),
    _failed(Failure.INFERENCE_FAILED, _ERROR),
    _failed(Failure.GRAPH_TOO_LARGE, _ERROR),
    _failed(Failure.OVERLOADED, _WARNING),
    _failed(Failure.NON_FINITE_OUTPUT, _ERROR),
    _failed(Failure.NO_SEED_CANDIDATES, _INFO),
    _failed(Failure.DEGRADED_INPUTS, _WARNING),
    # Its opening was reported as CRITICAL when it happened.
    _give_reason(
        0,
        "inference_breaker_open",
        _is("inference_breaker", CircuitBreakerState.OPEN),
        level=_INFO,
        reason=Failure.BREAKER_OPEN.value,
        enters=True,
    ),
    _pause(0, "emergency_halt", _is("emergency_level", EmergencyLevel.HALT), level=_CRITICAL, enters=True),
    _pause(0, "emergency_conservative", _is("emergency_level", EmergencyLevel.CONSERVATIVE), enters=True),
)

_SCORE_CRITICAL = _at_least("risk_score", "risk_score_critical")
_KERNEL_QUARANTINED = _at_least("blueprint_risk", "blueprint_risk_quarantine")
_HOST_QUARANTINED = _at_least("host_risk", "blueprint_risk_quarantine")
_quarantine = partial(_pause, 5, "bp_quarantine", level=_CRITICAL, enters=True)

#: What the network, the kernel and the safety sheets say (domain.md §5.1, rows 1, 4 to 6).
_POLICY_AND_BLUEPRINT: tuple[RiskRule, ...] = (
    _pause(1, "policy_risk_critical", _SCORE_CRITICAL, level=_CRITICAL, enters=True, score="risk_score"),
    _downgrade(
        1,
        "policy_risk_elevated",
        _at_least("risk_score", "risk_score_elevated"),
        _GRAFTS,
        unless=(_SCORE_CRITICAL,),
        score="risk_score",
    ),
    _report(
        1,
        "policy_risk_signal",
        Condition("risk_score", Comparison.AT_LEAST, value=0.0),
        level=_INFO,
        score="risk_score",
        index="risk_index",
    ),
    _give_reason(4, "timeout_urza", _is("metadata_timed_out", True), budget_ms="metadata_budget_ms"),
    _quarantine(_is("quarantine_only", True), tier="blueprint_tier"),
    _quarantine(
        _KERNEL_QUARANTINED, unless=(_is("quarantine_only", True),), tier="blueprint_tier", risk="blueprint_risk"
    ),
    _quarantine(_HOST_QUARANTINED, risk="host_risk"),
    _downgrade(
        5,
        "blueprint_risk",
        _at_least("blueprint_risk", "blueprint_risk_elevated"),
        _GRAFTS,
        unless=(_KERNEL_QUARANTINED,),
        risk="blueprint_risk",
    ),
    _report(
        6,
        "bsds_present",
        _is("sheet_present", True),
        level=_INFO,
        hazard="hazard_band",
        risk="sheet_risk",
        provenance="provenance",
    ),
    _pause(
        6,
        "bsds_handling_quarantine",
        _is("handling_class", HandlingClass.QUARANTINE),
        level=_CRITICAL,
        enters=True,
        handling="handling_class",
        provenance="provenance",
    ),
    _pause(
        6,
        "bsds_hazard_critical",
        _is("hazard_band", HazardBand.CRITICAL),
        level=_CRITICAL,
        enters=True,
        hazard="hazard_band",
        provenance="provenance",
    ),
    _downgrade(
        6,
        "bsds_hazard_high",
        _is("hazard_band", HazardBand.HIGH),
        grafts_only=True,
        hazard="hazard_band",
        provenance="provenance",
    ),
)

_SPIKE = _above("loss_delta", "loss_spike")

#: What the step measured (domain.md §5.1, rows 7 to 17).
_MEASURED: tuple[RiskRule, ...] = (
    # Before the loss warning that it comes with: it names the cause.
    _downgrade(
        16,
        "optimizer_hint",
        _at_most("optimizer_lr", "optimizer_lr"),
        _above("loss_delta", "loss_warning"),
        grafts_only=True,
        lr="optimizer_lr",
        loss_delta="loss_delta",
    ),
    _pause(7, "loss_spike", _SPIKE, enters=True, delta="loss_delta"),
    _downgrade(
        7, "loss_warning", _above("loss_delta", "loss_warning"), _GRAFTS, unless=(_SPIKE,), delta="loss_delta"
    ),
    _pause(8, "hook_budget", _above("hook_latency_ms", "hook_latency_ms"), latency_ms="hook_latency_ms"),
    _pause(9, "step_latency_high", _above("step_latency_ms", "step_latency_ms"), latency_ms="step_latency_ms"),
    _downgrade(
        10,
        "kasmina_apply_slow",
        _above("kasmina_apply_ms", "kasmina_apply_ms"),
        grafts_only=True,
        latency_ms="kasmina_apply_ms",
    ),
    _downgrade(
        11,
        "kasmina_finalize_slow",
        _above("kasmina_finalize_ms", "kasmina_finalize_ms"),
        grafts_only=True,
        latency_ms="kasmina_finalize_ms",
    ),
    _pause(
        12,
        "isolation_violations",
        _above("isolation_violations", "isolation_violations"),
        reason="isolation_violation",
        violations="isolation_violations",
    ),
    _downgrade(
        13,
        "loss_volatility_high",
        _above("loss_volatility", "loss_volatility"),
        grafts_only=True,
        volatility="loss_volatility",
    ),
    _downgrade(
        14,
        "grad_variance_high",
        _above("gradient_variance", "gradient_variance"),
        _GRAFTS,
        variance="gradient_variance",
    ),
    _downgrade(
        15,
        "grad_conflict_high",
        _above("gradient_conflict_rate", "gradient_conflict_rate"),
        _GRAFTS,
        rate="gradient_conflict_rate",
    ),
    _pause(
        17,
        "device_pressure_high",
        *_GPU_PRESSURE,
        grafts_only=True,
        util_percent="gpu_util_percent",
        free_gb="gpu_free_gb",
    ),
    _downgrade(
        17,
        "cpu_pressure_high",
        _at_least("cpu_util_percent", "cpu_util_percent"),
        _GRAFTS,
        unless=_GPU_PRESSURE,
        util_percent="cpu_util_percent",
    ),
)

_COVERAGE_CRITICAL = _at_most("coverage_average", "coverage_critical")

#: What upstream left out, and the state of things (domain.md §5.1, rows 18, 19, 2).
_CIRCUMSTANCES: tuple[RiskRule, ...] = (
    # The prototype's command stayed as it was here: a decision on next to nothing.
    _pause(
        18,
        "degraded_inputs",
        _COVERAGE_CRITICAL,
        level=_CRITICAL,
        coverage_avg="coverage_average",
        missing_features="missing_features",
    ),
    _report(
        18,
        "degraded_inputs",
        _below("coverage_average", "coverage_warn"),
        unless=(_COVERAGE_CRITICAL,),
        coverage_avg="coverage_average",
        missing_features="missing_features",
    ),
    _not_compiled("compile_disabled_cpu", "device_not_cuda", _INFO),
    _not_compiled("compile_disabled", "cuda_unavailable", _INFO),
    _not_compiled("compile_disabled", "compile_error", _WARNING),
    _not_compiled("compile_disabled", "runtime_failure", _WARNING),
    _pause(0, "state_old", _above("state_age_ms", "state_age_ms"), age_ms="state_age_ms"),
    _report(0, "state_gap", _some("gap_steps"), level=_INFO, steps="gap_steps"),
    _report(0, "state_stale", _some("stale_packets"), packets="stale_packets"),
    _report(0, "state_duplicate", _some("duplicate_packets"), packets="duplicate_packets"),
    _pause(0, "pause_quota_exceeded", _is("pauses_seed", True), _is("pause_quota_spent", True)),
    _give_reason(0, "no_seed_candidates", _is("wants_missing_seed", True), level=_INFO),
    _telling_reason(
        _pause(
            2,
            "pause_triggered",
            _is("conservative", True),
            reason="conservative_mode",
            unless=(_is("failure", Failure.TIMEOUT_INFERENCE.value),),
        ),
        "conservative_reason",
    ),
)

RISK_RULES: tuple[RiskRule, ...] = (*_FAILURES, *_POLICY_AND_BLUEPRINT, *_MEASURED, *_CIRCUMSTANCES)
