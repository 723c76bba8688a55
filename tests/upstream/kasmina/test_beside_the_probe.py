"""Probe and seed host on one model, and the other things that training loops do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig, BlendMode
from tamiyo_stream.upstream.kasmina.site import SeedSite
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.kasmina.gardens import WIDTH, Garden, Training


class Part(nn.Module):
    """A layer with an activation that is a function."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return functional.silu(self.linear(x))


class Checkpointed(Part):
    """The same, computed again in the backward pass."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Gelu(nn.Module):
    """A kernel with an activation that is a function."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + functional.gelu(self.linear(x))


def garden_with(part):
    training = Training()
    training.model.middle = part
    training.optimizer = torch.optim.Adam(training.model.parameters(), lr=0.01)
    return Garden(training, kernels={"k": Gelu}, sites=[SeedSite("s1", "middle")])


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED])
def test_the_probe_measures_the_host_as_if_no_kernel_were_there(stage):
    garden = garden_with(Part())
    training = garden.training
    probe = TolariaProbe.attach(
        training.model, training.optimizer, run_id="run", publisher=garden.publisher, sample_every=1
    )
    garden.germinated("k", blend=BlendConfig(BlendMode.CONFIDENCE)).until(stage)
    for _ in range(3):
        loss = training.step()
        probe.step(loss)
        garden.host.step(100, loss)
    state = garden.publisher.states[-1]

    assert not probe.statistics().errors
    assert garden.publisher.blueprints[-1].graph.activations.activation_id == ["tanh", "middle.silu", "relu"]
    assert bool(np.isfinite(state.activations.saturation_rate).all())
    assert bool(np.isfinite(state.layers.latency_ms).all())
    assert bool(np.isfinite(state.parameters.update_magnitude).all())


def test_the_kernels_group_is_a_parameter_of_the_new_blueprint():
    garden = garden_with(Part())
    probe = TolariaProbe.attach(
        garden.training.model, garden.training.optimizer, run_id="run", publisher=garden.publisher
    )
    garden.germinated("k").train()
    probe.step(garden.training.step())

    assert [blueprint.graph.parameters.parameter_id for blueprint in garden.publisher.blueprints] == [
        ["group0"],
        ["group0", "seed.s1"],
    ]


def test_a_checkpointed_site_lives_to_the_end():
    garden = garden_with(Checkpointed()).germinated("k").until(Stage.FOSSILIZED)

    assert not garden.events("gate_failure")


def test_a_run_under_autocast_lives_to_the_end():
    garden = garden_with(Part())
    plain = garden.training.model.forward

    def in_bfloat16(x):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(x).float()

    garden.training.model.forward = in_bfloat16
    garden.germinated("k").until(Stage.FOSSILIZED)

    assert not garden.events("gate_failure")
    assert {tensor.dtype for tensor in garden.training.optimizer.param_groups[1]["params"]} == {torch.float32}


def test_a_loop_that_clears_only_the_models_gradients_trains_on():
    garden = garden_with(Part()).germinated("k")
    garden.training.optimizer.zero_grad = garden.training.model.zero_grad
    garden.until(Stage.FOSSILIZED)
    own = garden.training.optimizer.param_groups[1]["params"]

    assert all(tensor.grad is None for tensor in own)
