"""The trial: what it counts, when it ends, and what it makes of the losses it saw."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tamiyo_stream.upstream.urabrask.cost import CostMeter
from tamiyo_stream.upstream.urabrask.trial import (
    LossIndependent,
    TrialPlan,
    TrialRecord,
    TrialTooSlow,
    host_run,
    kernel_run,
    run_trial,
)

PLAN = TrialPlan(steps=8, burn_in=2)
KIB = 1024


def test_bytes_are_counted_while_tensors_live():
    with CostMeter() as meter:
        first = torch.ones(256)
        view = first.view(16, 16)
        assert meter.held_bytes == KIB
        second = view + 1.0
        assert meter.held_bytes == 2 * KIB
        del first, view
        assert meter.held_bytes == KIB
        del second
        assert meter.held_bytes == 0
    assert meter.peak_bytes == 2 * KIB


def test_what_autograd_keeps_for_the_way_back_counts():
    leaf = torch.ones(256, requires_grad=True)
    with CostMeter() as meter:
        result = leaf.exp().sin()  # the exponential has no name, yet sin's gradient needs it
        assert meter.held_bytes == 2 * KIB
        result.sum().backward()
    assert leaf.grad is not None


def test_tensors_from_before_do_not_count():
    leaf = torch.ones(256)
    with CostMeter() as meter:
        leaf.add_(1.0)
        leaf.view(16, 16)
    assert meter.peak_bytes == 0


def test_operations_of_matrix_products_are_counted():
    with CostMeter() as meter:
        torch.ones(4, 8) @ torch.ones(8, 16)
    assert meter.flops == 2 * 4 * 8 * 16


def test_a_trial_trains():
    record = run_trial(nn.Linear(8, 8), kernel_run(8, PLAN), PLAN)

    assert len(record.losses) == len(record.gradient_ratios) == len(record.step_s) == 8
    assert record.losses[-1] < record.losses[0]
    assert record.flops == 8 * 3 * (2 * 256 * 8 * 8)  # forward, and two products on the way back
    assert record.growth_bytes == 0.0


def test_a_trial_ends_at_the_first_value_that_is_not_finite():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.calls = itertools.count()

        def forward(self, features):
            return features * self.scale * (math.nan if next(self.calls) == 3 else 1.0)

    record = run_trial(Failing(), kernel_run(8, PLAN), PLAN)

    assert record.non_finite
    assert (len(record.step_s), len(record.losses)) == (4, 3)


def test_a_trial_ends_where_a_module_holds_too_much():
    class Leaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = []

        def forward(self, features):
            self.held.append(torch.zeros(KIB, dtype=torch.uint8))
            return features

    plan = TrialPlan(steps=8, burn_in=2, budget_bytes=3 * KIB)
    record = run_trial(Leaking(), kernel_run(8, plan), plan)

    assert len(record.step_s) == 4
    assert record.growth_bytes == pytest.approx(KIB, abs=64)


def test_a_trial_that_is_out_of_time_says_how_far_it_got():
    clock = itertools.count(0.0, 4.0)
    plan = TrialPlan(steps=8, burn_in=2, budget_s=20.0)

    with pytest.raises(TrialTooSlow, match=r"3 of 8 steps took 28\.0 s, budget 20 s"):
        run_trial(nn.Linear(8, 8), kernel_run(8, plan), plan, clock=lambda: next(clock))


def test_a_loss_that_ignores_its_argument_is_refused():
    host, other = nn.Linear(4, 4), nn.Linear(4, 4)
    for loss_of in (lambda _: other(torch.ones(1, 4)).sum(), lambda _: torch.tensor(1.0)):
        with pytest.raises(LossIndependent, match="compute it from the argument"):
            run_trial(host, host_run(loss_of), PLAN)
    assert other.weight.grad is None


def test_the_path_of_a_host_leads_from_its_first_weights_to_its_last():
    host = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        host[0].weight.copy_(torch.eye(4))
        host[1].weight.copy_(100.0 * torch.eye(4))
    record = run_trial(host, host_run(lambda model: model(torch.ones(2, 4)).sum()), TrialPlan(steps=3, burn_in=0))

    assert record.gradient_ratios[0] == pytest.approx(100.0)


def losses(values):
    return TrialRecord(losses=list(values)).loss_std(burn_in=2)


def test_a_loss_that_falls_steadily_does_not_oscillate():
    assert losses(np.linspace(1.0, 0.2, 12)) == pytest.approx(0.0, abs=1e-9)


def test_a_loss_that_swings_does():
    assert losses(0.5 + 0.1 * (-1.0) ** np.arange(12)) == pytest.approx(0.1, rel=0.05)


def test_a_large_loss_is_measured_relative_to_its_mean():
    assert losses(10.0 + 1.0 * (-1.0) ** np.arange(12)) == pytest.approx(0.1, rel=0.05)


def test_losses_of_the_burn_in_do_not_count():
    assert losses([9.0, 5.0, *([0.5] * 10)]) == pytest.approx(0.0, abs=1e-9)


def test_too_few_losses_say_nothing():
    assert math.isnan(losses([1.0, 2.0, 3.0, 4.0]))


def test_a_plan_without_steps_to_judge_by_is_refused():
    with pytest.raises(ValueError, match=r"steps is 4; give at least burn_in \+ 3 = 7"):
        TrialPlan(steps=4)
