"""What the columns hold: figures that autograd and arithmetic confirm, and nothing where nothing was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.enums import GradientInstability
from tamiyo_stream.upstream.tolaria.columns import classify
from tamiyo_stream.upstream.tolaria.ewma import Ewma
from tests.upstream.tolaria.host_models import CharTransformer, DataDependent, Learned, Mlp, ResidualCnn
from tests.upstream.tolaria.recording import attached, train

X = torch.linspace(-2.0, 2.0, 24).reshape(3, 8)
TOKENS = torch.arange(20).reshape(2, 10)


def squares(model, x=X):
    return model(x).square().mean()


def eval_mlp():
    torch.manual_seed(0)
    model = Mlp()
    model.dropout.p = 0.0
    return model


def norm_of(tensors):
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def test_gradient_norms_are_those_of_autograd():
    model = eval_mlp()
    [state] = train(model, squares)

    expected = [norm_of(p.grad for p in layer.parameters()) for layer in (model.first, model.second, model.last)]
    np.testing.assert_allclose(state.layers.gradient_norm, expected, rtol=1e-5)
    total = norm_of(p.grad for p in model.parameters())
    assert state.training_metrics["gradient_norm"] == pytest.approx(total, rel=1e-5)


def test_a_shared_tensor_counts_in_both_layers_and_once_in_the_total():
    torch.manual_seed(0)
    model = CharTransformer()
    [state] = train(model, lambda m: m(TOKENS, TOKENS))

    assert state.layers.gradient_norm[0] == state.layers.gradient_norm[-1]
    total = norm_of(p.grad for p in model.parameters())
    assert state.training_metrics["gradient_norm"] == pytest.approx(total, rel=1e-5)


def test_gradients_are_the_ones_the_optimizer_used_even_if_cleared_after():
    model = eval_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    loss = 100.0 * squares(model)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    probe.step(loss=loss)

    assert publisher.states[0].training_metrics["gradient_norm"] == pytest.approx(0.5, rel=1e-4)


def test_accumulated_gradients_are_measured_as_accumulated():
    model = eval_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    for part in X.split(1):
        (squares(model, part) / 3).backward()
    expected = norm_of(p.grad for p in model.parameters())
    optimizer.step()
    probe.step(loss=0.0)

    assert publisher.states[0].training_metrics["gradient_norm"] == pytest.approx(expected, rel=1e-5)


def test_a_sparse_gradient_is_measured():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    tokens = torch.tensor([1, 1, 3])
    [state] = train(model, lambda m: m(tokens).square().mean())

    table = model[0].weight.grad.to_dense()
    assert state.layers.gradient_norm[0] == pytest.approx(norm_of([table]), rel=1e-5)
    assert state.layers.loss_contribution[0] == pytest.approx(0.1 * norm_of([table]) ** 2, rel=1e-4)


def test_half_precision_gradients_are_summed_in_full_precision():
    model = nn.Linear(64, 64).to(torch.bfloat16)
    x = torch.ones(4, 64, dtype=torch.bfloat16)
    [state] = train(model, lambda m: m(x).float().square().mean())

    expected = norm_of(p.grad for p in model.parameters())
    assert state.layers.gradient_norm[0] == pytest.approx(expected, rel=1e-4)


def test_weight_norms_are_those_after_the_update():
    model = eval_mlp()
    [state] = train(model, squares)

    expected = [norm_of(layer.parameters()) for layer in (model.first, model.second, model.last)]
    np.testing.assert_allclose(state.layers.weight_norm, expected, rtol=1e-5)


def test_loss_contribution_is_gradient_times_update():
    model = eval_mlp()
    [state] = train(model, squares)

    # SGD moves the weights by -0.1 g
    expected = [0.1 * norm_of(p.grad for p in layer.parameters()) ** 2 for layer in (model.first, model.second)]
    np.testing.assert_allclose(state.layers.loss_contribution[:2], expected, rtol=1e-3)


def test_update_magnitude_is_relative_to_the_groups_weights():
    model = eval_mlp()
    [state] = train(model, squares)

    gradient, weights = norm_of(p.grad for p in model.parameters()), norm_of(model.parameters())
    assert state.parameters.update_magnitude[0] == pytest.approx(0.1 * gradient / weights, rel=1e-4)
    assert np.isnan(state.parameters.convergence_rate[0])


def test_convergence_rate_is_the_decrease_of_the_update_per_step():
    states = train(eval_mlp(), squares, steps=5, sample_every=2)  # sampled: steps 0, 2, 4
    first, later = states[0].parameters.update_magnitude[0], states[2].parameters.update_magnitude[0]

    assert states[2].parameters.convergence_rate[0] == pytest.approx(1 - (later / first) ** 0.5, rel=1e-4)


def test_sampled_columns_are_sent_again_between_samples():
    states = train(eval_mlp(), squares, steps=4, sample_every=3)

    weights = [tuple(state.layers.weight_norm) for state in states]
    gradients = [tuple(state.layers.gradient_norm) for state in states]
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert len(set(gradients)) == 4


def test_update_frequency_is_the_share_of_steps_that_wrote_the_weights():
    model = eval_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    for step in range(3):
        squares(model).backward()
        if step != 1:  # as a loop that skips the update for a bad loss
            optimizer.step()
        probe.step(loss=1.0)

    frequency = [float(state.layers.update_frequency[0]) for state in publisher.states]
    assert frequency == pytest.approx([1.0, 0.9, 0.91], abs=1e-3)


def test_a_frozen_layer_has_weights_but_no_gradient():
    model = eval_mlp()
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    [state] = train(model, squares, optimizer=optimizer)

    assert np.isnan(state.layers.gradient_norm[0])
    assert state.layers.gradient_instability[0] == GradientInstability.UNKNOWN
    assert state.layers.update_frequency[0] == 0.0
    assert state.layers.weight_norm[0] == pytest.approx(norm_of(model.first.parameters()), rel=1e-5)
    assert np.isfinite(state.layers.gradient_norm[1:]).all()


def test_a_layer_the_loss_does_not_reach_has_no_gradient():
    model = eval_mlp()
    model.unused = nn.Linear(2, 2)
    [state] = train(model, squares)

    assert np.isnan(state.layers.gradient_norm[3])
    assert np.isnan(state.layers.latency_ms[3])


def test_latency_and_volume_are_measured_for_every_called_layer():
    [state] = train(eval_mlp(), squares)

    assert (state.layers.latency_ms > 0).all()
    assert state.layers.data_flow_volume.tolist() == [3 * 16 * 4, 3 * 16 * 4, 3 * 4 * 4]


def test_a_layer_called_twice_adds_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(8, 8)

        def forward(self, x):
            return self.cell(self.cell(x))

    [state] = train(Twice(), squares)
    assert state.layers.data_flow_volume.tolist() == [2 * 3 * 8 * 4]


@pytest.mark.parametrize(
    ("function", "saturated"),
    [
        (torch.relu, lambda x: x <= 0),
        (torch.tanh, lambda x: x.abs() >= 2.18),
        (functional.gelu, lambda x: x <= -2.35),
    ],
)
def test_saturation_is_the_share_of_outputs_in_the_flat_regions(function, saturated):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(8, 8)

        def forward(self, x):
            return function(self.scale(x))

    torch.manual_seed(0)
    model = One()
    x = 6.0 * torch.randn(20, 8)
    with torch.no_grad():
        inputs = model.scale(x)
    [state] = train(model, lambda m: m(x).square().mean())

    assert state.activations.saturation_rate[0] == pytest.approx(float(saturated(inputs).float().mean()), abs=1e-3)
    expected = float((function(inputs) != 0).float().mean())
    assert state.activations.activation_frequency[0] == pytest.approx(expected, abs=1e-3)


def test_saturation_events_count_the_saturated_samples():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 1))
    nn.init.constant_(model[0].bias, 50.0)
    states = train(model, squares, steps=3)

    assert [float(state.activations.saturation_events[0]) for state in states] == [1, 2, 3]


def test_gradient_flow_is_what_the_activation_lets_through():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    kept = {}
    [state] = train(model, lambda m: _with_gradients(m, kept))

    reaching, leaving = norm_of([kept["after"].grad]), norm_of([kept["before"].grad])
    assert state.activations.gradient_contribution[0] == pytest.approx(reaching, rel=1e-4)
    assert state.activations.gradient_flow[0] == pytest.approx(leaving / reaching, rel=1e-2)


def _with_gradients(model, kept):
    """Return the loss, keeping the gradients on either side of the activation."""
    handles = [
        model[0].register_forward_hook(lambda *call: kept.update(before=call[2]) or call[2].retain_grad()),
        model[1].register_forward_hook(lambda *call: kept.update(after=call[2]) or call[2].retain_grad()),
    ]
    loss = squares(model)
    for handle in handles:
        handle.remove()
    return loss


def test_an_identity_like_activation_is_linear_and_a_symmetric_one_is_not():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 64)
            self.down = nn.Linear(64, 8)

        def forward(self, x):
            positive = functional.relu(self.up(x) + 100.0)
            return functional.relu(self.down(positive - 100.0))

    torch.manual_seed(0)
    [state] = train(Both(), squares)

    assert state.activations.nonlinearity_strength[0] == pytest.approx(0.0, abs=1e-3)
    assert state.activations.nonlinearity_strength[1] > 0.01


def test_stability_needs_two_samples_and_is_one_for_a_steady_scale():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    states = train(model, squares, steps=2, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))

    assert np.isnan(states[0].activations.stability[0])
    assert states[1].activations.stability[0] == pytest.approx(1.0)


def test_fused_attention_says_what_it_can():
    torch.manual_seed(0)
    model = CharTransformer(depth=1)
    [state] = train(model, lambda m: m(TOKENS, TOKENS))

    activations = state.activations
    assert np.isfinite(activations.activation_frequency).all()
    assert np.isfinite(activations.gradient_contribution).all()
    assert np.isnan(activations.saturation_rate[0])  # its probabilities are never materialised
    assert np.isfinite(activations.saturation_rate[1])


def test_a_masked_softmax_is_measured_on_what_the_mask_lets_through():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(8, 8)
            self.softmax = nn.Softmax(dim=-1)
            self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

        def forward(self, x):
            return self.softmax(self.scores(x) + self.mask)

    torch.manual_seed(0)
    x = torch.randn(8, 8)
    [state] = train(Masked(), lambda m: m(x).square().sum())

    assert 0 < state.activations.nonlinearity_strength[0] <= 1
    assert np.isfinite(state.activations.saturation_rate[0])
    assert np.isfinite(state.activations.gradient_flow[0])


def test_an_in_place_activation_is_measured_on_its_input():
    torch.manual_seed(0)
    model = ResidualCnn()
    x = torch.randn(4, 1, 8, 8)
    [state] = train(model, lambda m: m(x).square().mean())

    assert (state.activations.nonlinearity_strength > 0.01).all()
    assert ((state.activations.gradient_flow > 0) & (state.activations.gradient_flow <= 1)).all()


def test_a_model_that_was_not_traced_is_measured_all_the_same():
    torch.manual_seed(0)
    states = train(DataDependent(), lambda m: m(torch.randn(4, 6)).square().mean(), steps=2)

    assert np.isfinite(states[-1].layers.latency_ms).all()
    assert np.isfinite(states[-1].activations.gradient_flow).all()


def test_functions_that_differ_from_the_traced_ones_are_not_guessed_at():
    class Switches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.smooth = False

        def forward(self, x):
            x = self.first(x)
            return functional.gelu(x) if self.smooth else functional.relu(x)

    model = Switches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer, sample_every=1)
    model.smooth = True
    squares(model).backward()
    probe.step(loss=1.0)

    assert np.isnan(publisher.states[0].activations.saturation_rate[0])


def test_evaluation_passes_are_not_observed():
    model = eval_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    model.eval()
    model(torch.randn(50, 8))
    model.train()
    with torch.no_grad():
        model(torch.randn(50, 8))
    squares(model).backward()
    optimizer.step()
    probe.step(loss=1.0)

    assert publisher.states[0].layers.data_flow_volume[0] == 3 * 16 * 4


def test_of_several_micro_batches_the_first_is_observed():
    model = eval_mlp()
    probe, publisher = attached(model)
    for size in (2, 5, 7):
        squares(model, torch.ones(size, 8)).backward()
    probe.step(loss=1.0)

    assert publisher.states[0].layers.data_flow_volume[0] == 2 * 16 * 4


def test_functions_inside_a_leaf_are_no_activations_of_the_graph():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return torch.relu(x - 100.0) * self.scale

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()
            self.last = nn.Linear(8, 8)

        def forward(self, x):
            return torch.relu(self.last(self.gate(x)) + 100.0)

    [state] = train(Outer(), squares)
    assert state.activations.saturation_rate.tolist() == [0.0]


def test_a_checkpointed_forward_is_observed_once():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(8, 8)
            self.last = nn.Linear(8, 8)

        def forward(self, x):
            return self.last(checkpoint(self.cell, x, use_reentrant=False))

    [state] = train(Checkpointed(), squares)
    assert state.layers.data_flow_volume.tolist() == [3 * 8 * 4, 3 * 8 * 4]


def test_a_learned_tensor_is_measured_as_a_layer():
    model = Learned()
    x = torch.ones(2, 5)
    [state] = train(model, lambda m: m(x).square().mean())

    layers = state.layers
    assert layers.gradient_norm[1] == pytest.approx(norm_of([model.offset.grad]), rel=1e-5)
    assert np.isnan(layers.latency_ms[1])


def test_gradient_variance_is_that_of_the_moving_statistics():
    states = train(eval_mlp(), squares, steps=4)
    expected = Ewma(3)
    for state in states:
        expected.update(np.asarray(state.layers.gradient_norm, dtype=np.float64))

    np.testing.assert_allclose(states[-1].layers.gradient_variance, expected.variance, rtol=1e-3)


def history(*samples):
    statistics = Ewma(1)
    for sample in samples:
        statistics.update(np.array([sample]))
    return statistics


@pytest.mark.parametrize(
    ("norm", "past", "expected"),
    [
        (1.0, [1.0] * 9, GradientInstability.STABLE),
        (1.0, [1.0] * 3, GradientInstability.UNKNOWN),
        (1e4, [], GradientInstability.EXPLODING),
        (20.0, [1.0] * 9, GradientInstability.EXPLODING),
        (math.nan, [1.0], GradientInstability.EXPLODING),
        (math.nan, [], GradientInstability.UNKNOWN),
        (1e-9, [1e-9] * 9, GradientInstability.VANISHING),
        (1.0, [0.01, 0.01, 9.0] * 4, GradientInstability.OSCILLATING),
    ],
)
def test_gradient_behaviour_is_classified(norm, past, expected):
    [number] = classify(np.array([norm]), history(*past), np.array([True]))

    assert GradientInstability(number) is expected


def test_a_layer_without_weights_has_no_gradient_class():
    [number] = classify(np.array([0.0]), history(*[0.0] * 9), np.array([False]))

    assert GradientInstability(number) is GradientInstability.UNKNOWN


def test_moving_statistics_ignore_what_is_not_finite():
    assert history(1.0, math.nan, math.inf, 2.0).mean[0] == pytest.approx(1.1)
    assert history(1.0, math.nan, 2.0).variance[0] == pytest.approx(0.09)
