"""A dormant host leaves the training as it was, bit by bit, and its modules without hooks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tests.upstream.kasmina.gardens import Garden, Training


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def trained(steps):
    """Return the weights after ``steps`` steps without a seed host."""
    training = Training()
    for _ in range(steps):
        training.step()
    return training.weights()


def test_training_with_dormant_seeds_is_bit_identical_to_training_without():
    plain = trained(25)
    garden = Garden(Training()).train(25)

    assert torch.equal(garden.training.weights(), plain)


def test_a_kernel_in_training_leaves_the_host_bit_identical_too():
    plain = trained(14)
    garden = Garden(Training()).germinated("linear").train(8)

    assert garden.steps == 14
    assert garden.host.stage("s1") is Stage.TRAINING
    assert torch.equal(garden.training.weights(), plain)


def test_between_two_looks_at_the_layers_no_module_has_a_hook():
    garden = Garden(activity_every=4)
    assert hooks_of(garden.training.model)
    garden.train(1)
    for _ in range(2):
        assert not hooks_of(garden.training.model)
        garden.train(1)
    garden.train(1)
    assert hooks_of(garden.training.model)


def test_dormant_seeds_do_not_read_the_loss():
    garden = Garden()

    class Unread(torch.Tensor):
        def __float__(self):
            raise AssertionError("the loss was read")

    for step in range(1, 8):
        garden.host.step(step, torch.ones(()).as_subclass(Unread))

    assert not garden.host.errors


def test_close_leaves_nothing_behind():
    training = Training()
    groups = len(training.optimizer.param_groups)
    garden = Garden(training).germinated().train(5)
    garden.host.germinate("s2", "linear")
    garden.host.close()

    assert not hooks_of(training.model)
    assert len(training.optimizer.param_groups) == groups
    assert not training.optimizer._optimizer_step_pre_hooks
    assert len(training.optimizer.state) == len(list(training.model.parameters()))
    sent = len(garden.publisher.sent)
    garden.host.step(99, 1.0)
    assert len(garden.publisher.sent) == sent


def test_a_host_closed_before_the_first_forward_leaves_nothing_behind():
    training = Training()
    Garden(training).host.close()

    assert not hooks_of(training.model)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301 - own bytes
def test_a_copied_model_takes_no_kernel_along(clone):
    garden = Garden(kernels={"linear": lambda width: torch.nn.Linear(width, width)}).germinated("linear")
    garden.until(Stage.FOSSILIZED)
    garden.training.model.eval()
    copied = clone(garden.training.model)
    x = torch.ones(2, 6)
    grafted = garden.training.model(x)
    garden.host.close()

    assert torch.equal(copied(x), garden.training.model(x))
    assert not torch.equal(copied(x), grafted)
