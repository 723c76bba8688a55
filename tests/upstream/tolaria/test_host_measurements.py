"""Each telemetry column is the quantity its contract names, computed here the long way round."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from schemas.enums import GradientInstability
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.tolaria import host_models


class Probed:
    """A small model in training, and the states that its probe published."""

    def __init__(self, model, optimizer=None, **options):
        self.model = model
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        self.states = []
        self.probe = TolariaProbe.attach(model, self.optimizer, run_id="run", publisher=self, **options)

    def publish(self, _stream, message, **_):
        if isinstance(message, SystemStatePacket):
            self.states.append(message)
        return True

    def step(self, batch, scale=1.0):
        self.optimizer.zero_grad()
        loss = self.model(batch).pow(2).mean() * scale
        loss.backward()
        self.optimizer.step()
        self.probe.step(loss, samples=len(batch))
        assert self.probe.statistics().errors == {}
        return self.states[-1]


def weights_of(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def gradients_of(module):
    return torch.cat([parameter.grad.flatten().clone() for parameter in module.parameters()])


def two_layers():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_update_magnitude_and_loss_contribution_are_those_of_the_update():
    probed = Probed(two_layers(), sample_every=1)
    before = weights_of(probed.model)
    first = weights_of(probed.model[0])
    state = probed.step(torch.randn(5, 6))
    change = weights_of(probed.model) - before

    assert state.parameters.update_magnitude[0] == pytest.approx(
        float(change.norm() / weights_of(probed.model).norm()), rel=1e-4
    )
    contribution = gradients_of(probed.model[0]) @ (weights_of(probed.model[0]) - first)
    assert state.layers.loss_contribution[0] == pytest.approx(abs(float(contribution)), rel=1e-4)


def test_learning_rate_and_momentum_are_those_in_force_per_group():
    model = two_layers()
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "betas": (0.7, 0.99)}],
        lr=0.2,
    )
    probed = Probed(model, optimizer)
    probed.step(torch.randn(2, 6))
    optimizer.param_groups[1]["lr"] = 0.05
    state = probed.step(torch.randn(2, 6))

    assert list(state.parameters.learning_rate) == pytest.approx([0.1, 0.05])
    assert list(state.parameters.momentum) == pytest.approx([0.9, 0.7])
    assert state.training_metrics["optimizer_lr"] == pytest.approx(0.075)


@pytest.mark.parametrize("model", [two_layers(), host_models.Mlp().eval()])
def test_relu_saturation_is_the_share_of_silent_outputs(model):
    relu_input = {}
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    first.register_forward_hook(lambda _module, _args, output: relu_input.update(value=output.detach().clone()))
    probed = Probed(model.train(), sample_every=1)
    state = probed.step(torch.randn(7, first.in_features))

    silent = float((relu_input["value"] <= 0).float().mean())
    assert state.activations.saturation_rate[0] == pytest.approx(silent, abs=1e-3)
    assert state.activations.activation_frequency[0] == pytest.approx(1 - silent, abs=1e-3)


def test_gradient_flow_is_the_share_of_the_gradient_norm_that_the_activation_lets_through():
    model = two_layers()
    kept = {}

    def keep(name):
        def hook(_module, _args, output):
            output.register_hook(lambda gradient: kept.update({name: gradient.clone()}))

        return hook

    model[0].register_forward_hook(keep("inner"))
    model[1].register_forward_hook(keep("outer"))
    state = Probed(model, sample_every=1).step(torch.randn(9, 6))

    assert state.activations.gradient_contribution[0] == pytest.approx(float(kept["outer"].norm()), rel=1e-3)
    assert state.activations.gradient_flow[0] == pytest.approx(
        float(kept["inner"].norm() / kept["outer"].norm()), rel=2e-3
    )


def test_an_activation_in_its_linear_range_has_no_nonlinearity():
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    probed = Probed(model, sample_every=1)
    linear = probed.step(torch.randn(8, 4) * 1e-3).activations.nonlinearity_strength[0]
    strong = probed.step(torch.randn(8, 4) * 30).activations.nonlinearity_strength[0]

    assert linear == pytest.approx(0, abs=1e-3)
    assert strong > 0.01


def test_a_saturated_tanh_is_counted_as_an_event():
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    probed = Probed(model, sample_every=1)
    probed.step(torch.randn(8, 4) * 1e-3)
    calm = probed.states[-1].activations
    probed.step(torch.randn(8, 4) * 1e3)
    saturated = probed.states[-1].activations

    assert (calm.saturation_rate[0], calm.saturation_events[0]) == (0, 0)
    assert saturated.saturation_rate[0] > 0.9
    assert saturated.saturation_events[0] == 1


def test_volume_is_the_bytes_of_the_layer_s_outputs():
    state = Probed(two_layers(), sample_every=1).step(torch.randn(5, 6))

    assert list(state.layers.data_flow_volume) == [5 * 8 * 4, 5 * 3 * 4]
    assert (state.layers.latency_ms > 0).all()


def test_sampled_columns_are_sent_again_in_between():
    probed = Probed(two_layers(), sample_every=3)
    states = [probed.step(torch.randn(size, 6)) for size in (5, 7, 7, 9)]

    volumes = [int(state.layers.data_flow_volume[0]) // (8 * 4) for state in states]
    assert volumes == [5, 5, 5, 9]
    norms = [float(state.layers.gradient_norm[0]) for state in states]
    assert len(set(norms)) == 4


def test_hooks_are_off_between_sampled_steps():
    probed = Probed(two_layers(), sample_every=3)
    probed.step(torch.randn(5, 6))

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in probed.model.modules())


def test_frozen_layers_are_never_updated():
    model = two_layers()
    model[0].requires_grad_(False)
    probed = Probed(model)
    states = [probed.step(torch.randn(5, 6)) for _ in range(3)]

    assert list(states[-1].layers.update_frequency) == [0, 1]
    assert math.isnan(states[-1].layers.gradient_norm[0])
    assert states[-1].layers.gradient_instability[0] == GradientInstability.UNKNOWN


def test_a_jump_of_the_gradient_is_exploding_and_calm_is_stable():
    torch.manual_seed(0)
    model = two_layers()
    probed = Probed(model, torch.optim.SGD(model.parameters(), lr=1e-6))
    batch = torch.randn(16, 6)
    for _ in range(12):
        calm = probed.step(batch)
    jumped = probed.step(batch, scale=100.0)

    assert set(calm.layers.gradient_instability) == {GradientInstability.STABLE}
    assert set(jumped.layers.gradient_instability) == {GradientInstability.EXPLODING}


def test_a_gradient_that_is_not_finite_never_enters_the_moving_statistics():
    model = two_layers()
    probed = Probed(model, torch.optim.SGD(model.parameters(), lr=0.0))
    batch = torch.randn(16, 6)
    before = [probed.step(batch) for _ in range(3)][-1]
    broken = probed.step(batch, scale=math.nan)

    assert np.isnan(broken.layers.gradient_norm).all()
    assert math.isnan(broken.training_loss)
    assert np.array_equal(broken.layers.gradient_variance, before.layers.gradient_variance)
    assert broken.training_metrics["loss_ewma"] == before.training_metrics["loss_ewma"]


def test_step_metrics_hold_what_was_measured_and_nothing_else():
    probed = Probed(two_layers())
    first = probed.step(torch.randn(5, 6)).training_metrics
    second = probed.step(torch.randn(5, 6)).training_metrics

    assert {
        "loss",
        "gradient_norm",
        "optimizer_lr",
        "optimizer_momentum",
        "optimizer_family_index",
    } <= first.keys()
    assert not {"samples_per_s", "step_latency_ms", "hook_latency_ms", "loss_delta"} & first.keys()
    assert second["samples_per_s"] == pytest.approx(5 / (second["step_latency_ms"] / 1e3))
    assert second["hook_latency_ms"] > 0
    assert second["loss_delta"] == pytest.approx(second["loss"] - first["loss"])
    assert second["optimizer_family_index"] == 0


def test_a_step_without_optimizer_step_still_reports_its_gradients():
    model = nn.Linear(3, 1)
    probed = Probed(model)
    model(torch.ones(1, 3)).sum().backward()
    probed.probe.step(1.0)

    assert probed.states[0].layers.gradient_norm[0] == pytest.approx(2.0)
    assert probed.states[0].layers.update_frequency[0] == 0


def test_sparse_gradients_are_measured():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    state = Probed(model, optimizer, sample_every=1).step(torch.tensor([[1, 2, 2]]))

    grad = model[0].weight.grad.to_dense()
    assert state.layers.gradient_norm[0] == pytest.approx(float(grad.norm()), rel=1e-5)
    assert state.layers.loss_contribution[0] > 0


def test_half_precision_is_summed_in_full():
    model = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    state = Probed(model, sample_every=1).step(torch.randn(8, 64, dtype=torch.bfloat16))

    expected = float(model.weight.detach().float().norm())
    assert state.layers.weight_norm[0] == pytest.approx(expected, rel=1e-5)
