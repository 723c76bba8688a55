"""Kernel parameters join whatever optimizer and schedulers the run has, and leave without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.parameter_groups import ParameterGroups
from tests.upstream.kasmina.gardens import Garden, Training

SCHEDULERS = {
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 100),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=200),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.001, 0.01, cycle_momentum=False),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[5],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_kernel_follows_the_runs_schedule_and_its_departure_does_not_disturb_it(kind):
    training = Training()
    scheduler = SCHEDULERS[kind](training.optimizer)
    garden = Garden(training, schedulers=[scheduler])
    rates = []

    def train(steps):
        for _ in range(steps):
            garden.train()
            scheduler.step()
            rates.append([group["lr"] for group in training.optimizer.param_groups])

    train(6)
    garden.host.germinate("s1", "linear")
    train(6)
    assert all(own == pytest.approx(host) for host, own in rates[6:])
    garden.host.cull("s1")
    train(4)

    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.01)
    reference = SCHEDULERS[kind](plain)
    for step, (host, *_) in enumerate(rates):
        plain.step()
        reference.step()
        assert plain.param_groups[0]["lr"] == pytest.approx(host), step


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.9)),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
        lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
    ],
)
def test_a_group_has_the_settings_of_the_hosts(make):
    garden = Garden(Training(make)).germinated("linear").until(Stage.BLENDING)
    host, own = garden.training.optimizer.param_groups

    assert {key: value for key, value in own.items() if key not in {"params", "name"}} == {
        key: value for key, value in host.items() if key not in {"params", "name"}
    }


def test_an_optimizer_of_named_parameters_gets_named_ones():
    model, kernel = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    groups = ParameterGroups(optimizer)
    groups.join(kernel, "seed.s1")

    assert optimizer.param_groups[1]["param_names"] == ["seed.s1.weight", "seed.s1.bias"]
    groups.leave(kernel)
    assert len(optimizer.param_groups) == 1


def test_a_learning_rate_tensor_is_not_shared_between_groups():
    optimizer = torch.optim.Adam(nn.Linear(3, 3).parameters(), lr=torch.tensor(0.1))
    ParameterGroups(optimizer).join(nn.Linear(3, 3), "seed.s1")

    assert optimizer.param_groups[0]["lr"] is not optimizer.param_groups[1]["lr"]


def test_leaving_twice_or_without_having_joined_changes_nothing():
    optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    groups, kernel = ParameterGroups(optimizer), nn.Linear(3, 3)
    groups.join(kernel, "seed.s1")
    groups.leave(kernel)
    groups.leave(kernel)

    assert len(optimizer.param_groups) == 1
    assert groups.position_of(kernel) is None
    assert groups.count_of(kernel) == 0


def test_frozen_tensors_of_a_kernel_do_not_join():
    optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    kernel = nn.Linear(3, 3)
    kernel.bias.requires_grad_(False)
    ParameterGroups(optimizer).join(kernel, "seed.s1")

    assert optimizer.param_groups[1]["params"] == [kernel.weight]


def test_an_optimizer_without_scheduler_needs_none():
    assert ParameterGroups(torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)).schedulers_known
