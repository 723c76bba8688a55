"""Blend modes follow domain.md §4.3; isolation keeps values, and gradients that are not finite, where they are."""

from __future__ import annotations

import math

import pytest
import torch

from tamiyo_stream.upstream.kasmina.mixing import (
    TRUST,
    BlendConfig,
    BlendInvalid,
    BlendMode,
    change_of,
    kernel_input,
    mixed,
    straight_through,
)

HOST = torch.tensor([[1.0, 2.0, 3.0]])
SEED = torch.tensor([[3.0, 0.0, 1.0]])


def test_convex_moves_from_host_to_seed():
    config = BlendConfig()

    assert mixed(config, 0.25, HOST, SEED).tolist() == [[1.5, 1.5, 2.5]]
    assert torch.equal(mixed(config, 0.0, HOST, SEED), HOST)
    assert torch.equal(mixed(config, 1.0, HOST, SEED), SEED)


def test_residual_adds_the_seed():
    assert mixed(BlendConfig(BlendMode.RESIDUAL), 0.5, HOST, SEED).tolist() == [[2.5, 2.0, 3.5]]


def test_channel_has_an_alpha_of_its_own_per_channel():
    config = BlendConfig(BlendMode.CHANNEL, alpha_vec=(1.0, 0.5, 0.0))

    assert mixed(config, 1.0, HOST, SEED).tolist() == [[3.0, 1.0, 3.0]]
    assert mixed(config, 0.5, HOST, SEED).tolist() == [[2.0, 1.5, 3.0]]


def test_channel_without_a_vector_is_convex():
    assert torch.equal(
        mixed(BlendConfig(BlendMode.CHANNEL), 0.3, HOST, SEED), mixed(BlendConfig(), 0.3, HOST, SEED)
    )


def test_confidence_blends_by_the_seeds_margin():
    config = BlendConfig(BlendMode.CONFIDENCE, gate_k=2.0, gate_tau=0.5)
    share = 0.5 / (1 + math.exp(-2.0 * (2.0 - 0.5)))  # margin 3 - 1

    blended = mixed(config, 0.5, HOST, SEED)

    assert torch.allclose(blended, share * SEED + (1 - share) * HOST)


@pytest.mark.parametrize(("low", "high", "share"), [(0.6, 1.0, 0.6), (0.0, 0.1, 0.1)])
def test_confidence_stays_within_its_bounds(low, high, share):
    config = BlendConfig(BlendMode.CONFIDENCE, alpha_lo=low, alpha_hi=high)

    assert torch.allclose(mixed(config, 0.5, HOST, SEED), share * SEED + (1 - share) * HOST)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"gate_k": -1.0}, "gate_k"),
        ({"alpha_lo": 0.8, "alpha_hi": 0.2}, "ordered"),
        ({"alpha_vec": (0.5, 1.5)}, "clamp"),
    ],
)
def test_settings_out_of_range_are_refused(fields, complaint):
    with pytest.raises(BlendInvalid, match=complaint):
        BlendConfig(**fields)


def test_a_vector_must_have_one_alpha_per_channel():
    config = BlendConfig(BlendMode.CHANNEL, alpha_vec=(0.5, 0.5))

    config.require_width(2)
    with pytest.raises(BlendInvalid, match="2 values, the site 3 channels"):
        config.require_width(3)


@pytest.mark.parametrize("mode", list(BlendMode))
def test_both_host_and_seed_learn_from_what_is_blended(mode):
    host, seed = HOST.clone().requires_grad_(), SEED.clone().requires_grad_()

    mixed(BlendConfig(mode), 0.5, host, seed).sum().backward()

    assert bool((host.grad != 0).all())
    assert bool((seed.grad != 0).all())


def test_straight_through_keeps_every_bit_of_the_host_and_its_gradient():
    host, seed = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(4, 3)

    passed = straight_through(host, change_of(BlendConfig(), host, seed))
    (passed * weight).sum().backward()

    assert torch.equal(passed, host)
    assert torch.equal(host.grad, weight)


def test_straight_through_teaches_the_seed_by_the_loss_and_a_pull_towards_no_change():
    host, change = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(4, 3)

    (straight_through(host, change) * weight).sum().backward()

    pull = weight.norm() / (TRUST * host.norm())
    assert torch.allclose(change.grad, weight + pull * change.detach())


def test_a_kernel_in_training_settles_at_the_trusted_distance_down_the_gradient():
    host, weight = torch.randn(4, 3), torch.randn(4, 3)
    change = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.SGD([change], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (straight_through(host, change) * weight).sum().backward()
        optimizer.step()

    assert torch.allclose(change.detach(), -TRUST * host.norm() * weight / weight.norm(), atol=1e-4)


def test_an_isolated_input_hands_no_gradient_back():
    host = torch.randn(2, 3, requires_grad=True)

    assert not kernel_input(host, isolated=True).requires_grad


def test_a_kernel_may_work_on_its_input_in_place():
    host = HOST.clone()

    kernel_input(host, isolated=False).zero_()

    assert torch.equal(host, HOST)


def test_gradients_that_are_not_finite_stay_in_the_kernel():
    host = torch.zeros(1, 2, requires_grad=True)

    (kernel_input(host, isolated=False).sqrt() * torch.tensor([[1.0, 0.0]])).sum().backward()

    assert host.grad.tolist() == [[0.0, 0.0]]


def test_what_a_seed_changes_is_its_output_where_it_is_added_and_the_difference_elsewhere():
    assert torch.equal(change_of(BlendConfig(BlendMode.RESIDUAL), HOST, SEED), SEED)
    assert torch.equal(change_of(BlendConfig(), HOST, SEED), SEED - HOST)
