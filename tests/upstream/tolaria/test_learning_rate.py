"""An OPTIMIZER command moves the learning rate relatively, in bounds, or is refused with a reason."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from schemas.enums import CommandType
from schemas.tamiyo import AdaptationCommand, CommandOptimizerAdjustment
from tamiyo_stream.upstream.tolaria.learning_rate import HIGHEST, LOWEST, Refusal, apply_optimizer_command

ISSUED_AT = 1_000_000_000_000


def command(hyperparameters=None):
    adjustment = (
        None
        if hyperparameters is None
        else CommandOptimizerAdjustment(optimizer_id="sgd", hyperparameters=hyperparameters)
    )
    return AdaptationCommand(
        command_id="c-1",
        command_type=CommandType.PAUSE if adjustment is None else CommandType.OPTIMIZER,
        execution_deadline_ms=45,
        issued_at=ISSUED_AT,
        run_id="run",
        packet_id="run-step-1",
        global_step=1,
        optimizer_adjustment=adjustment,
    )


def sgd(*lrs):
    return torch.optim.SGD([{"params": nn.Linear(2, 2).parameters(), "lr": lr} for lr in lrs], lr=1.0)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_every_group_moves_by_the_same_share():
    optimizer = sgd(0.1, 0.01)

    change = apply_optimizer_command(optimizer, command({"lr_change": -0.1}), [0.1, 0.01])

    assert change.applied
    assert change.before == (0.1, 0.01)
    assert lrs_of(optimizer) == pytest.approx([0.09, 0.009])
    assert change.after == tuple(lrs_of(optimizer))


@pytest.mark.parametrize(("asked", "expected"), [(5.0, 0.12), (-0.99, 0.08)])
def test_one_command_moves_at_most_a_fifth(asked, expected):
    optimizer = sgd(0.1)

    apply_optimizer_command(optimizer, command({"lr_change": asked}), [0.1])

    assert lrs_of(optimizer) == pytest.approx([expected])


@pytest.mark.parametrize(("asked", "bound"), [(0.2, HIGHEST), (-0.2, LOWEST)])
def test_many_commands_end_at_the_bound_and_are_refused_there(asked, bound):
    optimizer = sgd(0.1)

    changes = [apply_optimizer_command(optimizer, command({"lr_change": asked}), [0.1]) for _ in range(12)]

    assert lrs_of(optimizer) == pytest.approx([0.1 * bound])
    assert changes[-1].refusal is Refusal.AT_BOUND


@pytest.mark.parametrize(("lr", "asked"), [(1.0, 0.1), (0.01, -0.1)])
def test_a_group_outside_its_bounds_is_not_pulled_back_against_the_command(lr, asked):
    optimizer = sgd(lr)

    change = apply_optimizer_command(optimizer, command({"lr_change": asked}), [0.1])

    assert change.refusal is Refusal.AT_BOUND
    assert lrs_of(optimizer) == [lr]


@pytest.mark.parametrize(
    ("given_command", "base_lrs", "now_ns", "refusal"),
    [
        (command(), [0.1], None, Refusal.NOT_OPTIMIZER),
        (command({"momentum": 0.1}), [0.1], None, Refusal.NO_LR_CHANGE),
        (command({"lr_change": 0.0}), [0.1], None, Refusal.NO_LR_CHANGE),
        (command({"lr_change": 0.1}), [0.1, 0.1], None, Refusal.GROUPS_DIFFER),
        (command({"lr_change": 0.1}), [math.nan], None, Refusal.NOT_FINITE),
        (command({"lr_change": 0.1}), [0.1], ISSUED_AT + 46_000_000, Refusal.LATE),
    ],
)
def test_a_refused_command_changes_nothing(given_command, base_lrs, now_ns, refusal):
    optimizer = sgd(0.1)

    change = apply_optimizer_command(optimizer, given_command, base_lrs, now_ns=now_ns)

    assert change.refusal is refusal
    assert lrs_of(optimizer) == [0.1]


def test_a_command_within_its_deadline_is_applied():
    change = apply_optimizer_command(sgd(0.1), command({"lr_change": 0.1}), [0.1], now_ns=ISSUED_AT + 45_000_000)

    assert change.applied


def test_a_learning_rate_that_is_not_finite_is_refused():
    change = apply_optimizer_command(sgd(math.inf), command({"lr_change": 0.1}), [0.1])

    assert change.refusal is Refusal.NOT_FINITE


def test_a_learning_rate_tensor_keeps_its_identity():
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]

    apply_optimizer_command(optimizer, command({"lr_change": -0.1}), [0.1])

    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.09)


@given(st.lists(st.floats(-3, 3), max_size=30))
def test_no_sequence_of_commands_leaves_the_bounds(asked):
    optimizer = sgd(0.1)

    for change in asked:
        before = lrs_of(optimizer)[0]
        apply_optimizer_command(optimizer, command({"lr_change": change}), [0.1])
        assert abs(lrs_of(optimizer)[0] / before - 1) <= 0.2 + 1e-9

    assert 0.1 * LOWEST - 1e-12 <= lrs_of(optimizer)[0] <= 0.1 * HIGHEST + 1e-12
