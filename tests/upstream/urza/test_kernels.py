"""Kernels as modules: they keep the features' shape, learn, honour their bounds and leave nothing behind."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from schemas.enums import BlueprintTier
from tamiyo_stream.upstream.urza.catalogue import KERNELS, catalogue
from tamiyo_stream.upstream.urza.kernel import KernelParameterInvalid, KernelWidthInvalid

ALL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
ZERO_OUTPUT = [kernel for kernel in KERNELS if kernel.zero_output]
CAUSAL = ("temporal_conv", "low_rank_attention", "fast_weights")
BY_NAME = {kernel.name: kernel for kernel in KERNELS}
TUNED = [(kernel, tunable) for kernel in KERNELS for tunable in kernel.tunables]


def trained(module, features, steps=3):
    """Train ``module`` to change ``features`` into other ones; return the losses."""
    target = torch.tanh(features.roll(1, dims=-1))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(features + module(features), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ALL
@pytest.mark.parametrize("shape", [(5, 1), (6, 24), (2, 3, 64), (2, 2, 5, 16)], ids=str)
def test_features_keep_their_shape_and_a_gradient_comes_back(kernel, shape):
    module = kernel.build(shape[-1])
    features = torch.randn(shape, requires_grad=True)

    output = module(features)
    output.sum().backward()

    assert output.shape == features.shape
    assert output.dtype is features.dtype
    assert features.grad is not None
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kernel", ZERO_OUTPUT, ids=lambda kernel: kernel.name)
def test_a_kernel_of_zero_output_changes_nothing_until_it_is_trained(kernel):
    module, features = kernel.build(16), torch.randn(4, 6, 16)

    assert torch.count_nonzero(module(features)) == 0
    losses = trained(module, features, steps=8)
    assert torch.count_nonzero(module(features)) > 0
    assert losses[-1] < losses[0]


def test_every_safe_kernel_but_identity_and_highway_starts_at_zero():
    safe = [kernel for kernel in KERNELS if kernel.descriptor.tier is BlueprintTier.SAFE]

    assert {kernel.name for kernel in safe if not kernel.zero_output} == {"identity", "highway_gate"}


def test_the_highway_gate_starts_nearly_closed():
    features = torch.randn(64, 32)

    assert BY_NAME["highway_gate"].build(32)(features).norm() < 0.1 * features.norm()


@pytest.mark.parametrize("name", CAUSAL)
def test_no_position_sees_a_later_one(name):
    module, features = BY_NAME[name].build(16), torch.randn(2, 6, 16)
    trained(module, features)
    changed = features.clone()
    changed[:, 4:] += torch.randn(16)

    before, after = module(features), module(changed)

    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize("name", CAUSAL)
def test_samples_of_a_batch_without_positions_do_not_see_each_other(name):
    module, batch = BY_NAME[name].build(16), torch.randn(5, 16)
    trained(module, batch)

    torch.testing.assert_close(module(batch)[3:4], module(batch[3:4]))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_position_does_see_an_earlier_one(name):
    module, features = BY_NAME[name].build(16), torch.randn(2, 6, 16)
    trained(module, features)
    changed = features.clone()
    changed[:, 4] += torch.randn(16)

    assert not torch.allclose(module(changed)[:, 5], module(features)[:, 5])


@ALL
def test_equal_arguments_give_equal_weights_and_leave_the_random_state(kernel):
    before = torch.get_rng_state()
    first = kernel.build(16)
    assert torch.equal(torch.get_rng_state(), before)

    torch.rand(1)
    second = kernel.build(16)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kernel", "tunable"), TUNED, ids=lambda row: getattr(row, "blueprint_id", None) or row.name
)
def test_both_ends_of_a_bound_can_be_built_and_what_lies_outside_is_refused(kernel, tunable):
    bounds = kernel.descriptor.allowed_parameters[tunable.name]
    for value in (bounds.min_value, bounds.max_value):
        assert kernel.build(16, {tunable.name: value})(torch.randn(2, 3, 16)).shape == (2, 3, 16)

    step = bounds.max_value - bounds.min_value
    for value in (bounds.min_value - step, bounds.max_value + step, math.nan, math.inf):
        with pytest.raises(KernelParameterInvalid) as refusal:
            kernel.build(16, {tunable.name: value})
        for named in (kernel.blueprint_id, tunable.name, str(value), f"{bounds.max_value:g}"):
            assert named in str(refusal.value)


#: What a parameter does: (kernel, parameter, low, high, a number read off the built module that must differ).
EFFECTS = [
    ("scale_shift", "initial_scale", 0.0, 1.0, lambda module: float(module.scale.detach().mean())),
    ("bottleneck_adapter", "rank", 2, 16, lambda module: module.down.out_features),
    ("norm_linear", "norm_epsilon", 1e-6, 1e-2, lambda module: module.norm.eps),
    ("gelu_mlp", "expansion", 1, 3, lambda module: module.expand.out_features / 16),
    ("gated_mlp", "expansion", 1, 3, lambda module: module.gate.out_features / 16),
    ("dropout_mlp", "expansion", 1, 3, lambda module: module.expand.out_features / 16),
    ("dropout_mlp", "dropout", 0.0, 0.5, lambda module: module.dropout.p),
    ("squeeze_excite_gate", "reduction", 2, 8, lambda module: 16 / module.squeeze.out_features),
    ("highway_gate", "gate_bias", -4, -1, lambda module: float(module.carry.bias.detach().mean())),
    ("temporal_conv", "kernel_size", 2, 5, lambda module: module.depthwise.kernel_size[0]),
    ("low_rank_attention", "rank", 2, 16, lambda module: module.query.out_features),
    ("soft_experts", "experts", 2, 6, lambda module: module.router.out_features),
    ("sinusoidal_block", "frequency", 1, 30, lambda module: module.frequency),
    ("polynomial_gate", "order", 2, 5, lambda module: module.weights.shape[0]),
    ("fast_weights", "decay", 0.5, 0.9, lambda module: math.exp(module.log_decay)),
    ("exploding_gradient", "gain", 2.5, 4, lambda module: float(module.layers[0].weight.detach().norm()) / 4),
    ("vanishing_gradient", "depth", 12, 20, lambda module: len(module.layers)),
    ("nan_injector", "threshold", 0.0, 2.0, lambda module: module.threshold),
    ("oscillator", "amplitude", 0.5, 2.0, lambda module: float(module(torch.ones(1, 16)).detach().mean())),
    ("memory_hog", "block_megabytes", 8, 16, lambda module: held(module, forwards=1)),
    ("memory_hog", "held_megabytes", 96, 128, lambda module: held(module, forwards=20)),
    ("precision_sensitive", "offset", 1e7, 1e9, lambda module: module.offset),
]


def held(module, forwards):
    """Return the megabytes that ``module`` keeps after ``forwards``."""
    for _ in range(forwards):
        module(torch.zeros(1, 16))
    return sum(block.nbytes for block in module._held) / 1024**2


@pytest.mark.parametrize(
    ("name", "parameter", "low", "high", "reading"),
    EFFECTS,
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_parameter_does_what_it_says(name, parameter, low, high, reading):
    for value in (low, high):
        assert reading(BY_NAME[name].build(16, {parameter: value})) == pytest.approx(value)


def test_every_parameter_of_the_catalogue_has_its_effect_checked():
    assert {(kernel.name, tunable.name) for kernel, tunable in TUNED} == {row[:2] for row in EFFECTS}


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_a_value_is_taken_exactly_where_it_lies_within_the_bounds(value):
    tunable = BY_NAME["highway_gate"].tunables[0]
    if tunable.minimum <= value <= tunable.maximum:
        assert tunable.checked(value, "BP009") == value
    else:
        with pytest.raises(KernelParameterInvalid, match="BP009: gate_bias is"):
            tunable.checked(value, "BP009")


def test_a_count_must_be_whole():
    with pytest.raises(KernelParameterInvalid, match=r"BP003: rank is 3\.5; give a whole number from 2 to 64"):
        catalogue()["BP003"].build(16, {"rank": 3.5})


def test_an_unknown_parameter_is_refused_by_name():
    with pytest.raises(KernelParameterInvalid, match=r"BP003 has no parameter 'depth' \(given 2\); it has: rank"):
        catalogue()["BP003"].build(16, {"depth": 2})


def test_a_width_below_one_is_refused():
    with pytest.raises(KernelWidthInvalid, match="width is 0"):
        catalogue()["BP003"].build(0)
