"""What a kernel does wrong ends the graft at once, with its reason; the host goes on as if it had none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from schemas.enums import MessagePriority, SeedLifecycleGate, TelemetryLevel
from tamiyo_stream.upstream.kasmina.lifecycle import CHECKS, Facts, Gate, GateFailed, Limits, Stage, judge
from tamiyo_stream.upstream.kasmina.site import SeedSite
from tests.upstream.kasmina.gardens import LIMITS, Faulty, Garden, Training


def raises(_):
    raise ArithmeticError("no such number")


def gives_nan(output):
    return output * float("nan")


def garden_with(fault, from_call=1, **settings):
    return Garden(kernels={"faulty": lambda width: Faulty(width, fault, from_call)}, **settings)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (raises, "kernel_raised"),
        (gives_nan, "kernel_output_not_finite"),
        (lambda output: output / 0.0, "kernel_output_not_finite"),
        (lambda output: output[..., :3], "interface_mismatch"),
        (lambda output: output.double(), "interface_mismatch"),
        (lambda output: (output,), "interface_mismatch"),
    ],
)
@pytest.mark.parametrize("from_call", [1, 12, 20])
def test_a_faulty_kernel_is_out_at_once_with_its_reason(fault, reason, from_call):
    garden = garden_with(fault, from_call).germinated("faulty").until(Stage.EMBARGOED)

    assert len(garden.training.optimizer.param_groups) == 1
    assert [event.attributes["reason"] for event in garden.events("fallback_applied")] == [reason]
    assert [event.attributes["reason"] for event in garden.events("gate_failure")] == [reason]
    assert bool(garden.training.weights().isfinite().all())


def test_a_kernel_that_fails_in_training_leaves_the_host_bit_identical():
    plain = Training()
    for _ in range(26):
        plain.step()
    garden = garden_with(gives_nan, 3).germinated("faulty").train(20)

    assert garden.events("fallback_applied")
    assert torch.equal(garden.training.weights(), plain.weights())


def test_the_forward_that_meets_a_failure_gives_the_hosts_own_output():
    garden = garden_with(gives_nan, 100).germinated("faulty").until(Stage.SHADOWING)
    model, x = garden.training.model.eval(), torch.ones(2, 6)
    garden.host.pause("s1")
    own = model(x)
    garden.host.resume("s1")
    garden.training.optimizer.param_groups[1]["params"][0].data.fill_(float("nan"))

    assert torch.equal(model(x), own)
    assert garden.host.stage("s1") is Stage.CULLED


def test_the_reason_leaves_with_high_priority_in_the_step_it_happened():
    garden = garden_with(raises, telemetry_every=1000).germinated("faulty").train(3)
    alarms = [packet for packet in garden.packets if packet.level is TelemetryLevel.WARNING]

    assert [packet.priority for packet in alarms] == [MessagePriority.HIGH]
    assert alarms[0].system_health.summary == "kernel_raised"
    [event] = [event for event in alarms[0].events if event.description == "fallback_applied"]
    assert event.attributes["detail"] == "ArithmeticError: no such number"


def test_a_fossilized_kernel_that_fails_is_terminated():
    calls = LIMITS.training_steps + LIMITS.blending_steps + LIMITS.shadowing_steps + LIMITS.probation_steps
    garden = garden_with(gives_nan, calls + 2).germinated("faulty").until(Stage.TERMINATED)

    assert garden.events("seed_stage")[-1].attributes["from"] == "FOSSILIZED"
    assert len(garden.training.optimizer.param_groups) == 1


def test_a_gradient_that_is_not_finite_ends_the_graft_and_spares_the_host():
    class Steep(nn.Module):
        """Finite values, infinite derivative."""

        def __init__(self, width):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(width))

        def forward(self, x):
            return x + (self.scale * 0).sqrt()

    garden = Garden(kernels={"steep": Steep}).germinated("steep").until(Stage.CULLED)

    assert garden.events("fallback_applied") == []
    garden.train()
    assert bool(garden.training.weights().isfinite().all())
    assert {event.attributes["reason"] for event in garden.events("gate_failure")} == {"gradient_not_finite"}


def test_a_seed_whose_run_diverges_while_it_blends_is_culled():
    garden = Garden().germinated().until(Stage.BLENDING)
    garden.training.step()
    garden.host.step(99, float("inf"))

    assert garden.host.stage("s1") is Stage.CULLED


def test_a_loss_that_rose_since_before_the_graft_is_the_end_at_g4():
    garden = Garden().germinated().until(Stage.PROBATIONARY)
    for step in range(100, 100 + LIMITS.probation_steps):
        garden.host.step(step, garden.training.step() + 5.0)

    assert garden.host.stage("s1") is Stage.CULLED
    assert garden.exported().success_rate == pytest.approx(1 / 3)


def test_a_higher_risk_tolerance_lets_a_loss_rise_further():
    limits = Limits(regression_max=0.2)
    facts = {"loss": 1.15, "loss_before": 1.0}

    assert judge(Gate.G4_SYSTEM_IMPACT, Facts(**facts, risk_tolerance=0.5), limits).passed is False
    assert judge(Gate.G4_SYSTEM_IMPACT, Facts(**facts, risk_tolerance=0.8), limits).passed is True


GOOD = Facts(
    width=4, parameters=2, baseline_steps=9, gradient_norm=1.0, loss=1.0, loss_before=1.0, spread=0.1,
    spread_before=0.1, norm_ratio=0.5, interface_checks=1,
)  # fmt: skip
BAD = {
    "seed_quarantined": {"quarantine_only": True},
    "kernel_unknown": {"kernel_known": False},
    "site_width_unknown": {"width": None},
    "kernel_build_failed": {"kernel_error": "boom"},
    "kernel_without_parameters": {"parameters": 0},
    "kernel_parameters_not_finite": {"parameters_finite": False},
    "loss_before_unknown": {"baseline_steps": 4},
    "scheduler_not_given": {"schedulers_known": False},
    "distributed_training": {"processes": 2},
    "gradient_not_finite": {"gradient_norm": float("nan")},
    "gradient_exploding": {"gradient_norm": 1e4},
    "gradient_vanished": {"gradient_norm": 1e-9},
    "loss_not_finite": {"loss": float("inf")},
    "loss_unstable": {"spread": 1.0},
    "kernel_dominates": {"norm_ratio": 11.0},
    "loss_regression": {"loss": 1.2},
    "kernel_still_attached": {"kernel_attached": True},
    "parameters_still_in_optimizer": {"parameters_left": 1},
}
WAITING = {
    "gradient_not_finite": {"gradient_norm": None},
    "loss_not_finite": {"loss": None},
    "loss_unstable": {"spread": None},
    "kernel_dominates": {"norm_ratio": None},
    "interface_unproven": {"interface_checks": 0},
    "loss_regression": {"loss_before": None},
}


def changed(facts):
    return Facts(**{**{name: getattr(GOOD, name) for name in Facts.__slots__}, **facts})


def test_every_check_has_a_fact_that_fails_it_or_keeps_it_waiting():
    assert {check.reason for check in CHECKS} == set(BAD) | set(WAITING)


@pytest.mark.parametrize("gate", [gate for gate in SeedLifecycleGate if gate is not Gate.UNKNOWN])
def test_good_facts_pass_every_gate(gate):
    assert judge(gate, GOOD, Limits()).passed is True


@pytest.mark.parametrize("reason", BAD)
def test_one_bad_fact_fails_its_gate_with_its_reason(reason):
    gate = next(check.gate for check in CHECKS if check.reason == reason)
    verdict = judge(gate, changed(BAD[reason]), Limits())

    assert (verdict.passed, verdict.reason) == (False, reason)


@pytest.mark.parametrize("reason", WAITING)
def test_a_gate_waits_for_a_fact_it_does_not_know(reason):
    gate = next(check.gate for check in CHECKS if check.reason == reason)
    verdict = judge(gate, changed(WAITING[reason]), Limits())

    assert (verdict.passed, verdict.reason) == (None, reason)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (None, "kernel_unknown"),
        (raises, "kernel_build_failed"),
        (lambda _: nn.Identity(), "kernel_without_parameters"),
        (
            lambda width: nn.utils.skip_init(nn.Linear, width, width).requires_grad_(False),
            "kernel_without_parameters",
        ),
    ],
)
def test_a_kernel_that_is_not_sane_never_reaches_the_site(kernel, reason):
    garden = Garden(kernels={"k": kernel} if kernel is not None else {"other": nn.Identity}).train(6)

    with pytest.raises(GateFailed, match=reason) as failed:
        garden.host.germinate("s1", "k")
    garden.train()

    assert failed.value.gate is Gate.G0_SANITY
    assert garden.host.stage("s1") is Stage.DORMANT
    assert [event.attributes["reason"] for event in garden.events("gate_failure")] == [reason]
    assert len(garden.training.optimizer.param_groups) == 1


def test_a_kernel_born_with_nan_is_turned_away():
    def build(width):
        kernel = nn.Linear(width, width)
        kernel.weight.data[0, 0] = float("nan")
        return kernel

    with pytest.raises(GateFailed, match="kernel_parameters_not_finite"):
        Garden(kernels={"k": build}).train(6).host.germinate("s1", "k")


def test_before_the_first_forward_no_seed_germinates():
    with pytest.raises(GateFailed, match="site_width_unknown"):
        Garden().host.germinate("s1", "identity")


def test_without_a_loss_to_compare_with_no_seed_germinates():
    garden = Garden().train(LIMITS.baseline_steps - 1)

    with pytest.raises(GateFailed, match="loss_before_unknown"):
        garden.host.germinate("s1", "identity")


def test_a_scheduler_that_nobody_named_is_noticed_before_it_stops_the_run():
    training = Training()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.99)
    garden = Garden(training).train(6)

    with pytest.raises(GateFailed, match="scheduler_not_given"):
        garden.host.germinate("s1", "identity")
    scheduler.step()


def test_a_kernel_that_is_grafted_elsewhere_is_turned_away():
    shared = nn.Linear(12, 12)
    garden = Garden(kernels={"shared": lambda _: shared}).germinated("shared")

    with pytest.raises(GateFailed, match="optimizer_refused_kernel"):
        garden.host.germinate("s2", "shared")
    assert garden.host.stage("s2") is Stage.DORMANT
    assert garden.until(Stage.FOSSILIZED).host.stage("s2") is Stage.DORMANT


def test_a_seed_in_quarantine_does_not_germinate():
    site = SeedSite("s1", "middle", quarantine_only=True)

    with pytest.raises(GateFailed, match="seed_quarantined"):
        Garden(sites=[site]).train(6).host.germinate("s1", "identity")


def test_a_reset_that_left_parameters_behind_does_not_pass_g5():
    garden = Garden().germinated().train(3)
    left = garden.training.optimizer.param_groups[1]["params"]
    garden.host.cull("s1")
    garden.training.optimizer.add_param_group({"params": left})
    garden.clock.now = 1e6
    garden.train(12)

    assert garden.host.stage("s1") is Stage.RESETTING
    assert {event.attributes["reason"] for event in garden.events("gate_failure")} == {
        "parameters_still_in_optimizer"
    }


def test_a_violation_is_told_once_in_the_training_metrics_with_the_hosts_own_times():
    garden = garden_with(gives_nan).germinated("faulty").until(Stage.EMBARGOED)
    first, second = garden.host.training_metrics(), garden.host.training_metrics()

    assert first["kasmina.isolation.violations"] == 1.0
    assert first["kasmina.finalize_ms"] > 0.0
    assert second == {"kasmina.apply_ms": 0.0, "kasmina.finalize_ms": 0.0, "kasmina.isolation.violations": 0.0}
