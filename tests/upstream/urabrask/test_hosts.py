"""Host models on trial: a sheet comes out, and the host goes on as if nothing had been."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from schemas.enums import HazardBand
from schemas.urabrask import BlueprintSafetyFailed
from tamiyo_stream.upstream.urabrask.crucible import evaluate_host
from tests.upstream.tolaria.host_models import CharTransformer, Mlp, ResidualCnn
from tests.upstream.tolaria.recording import attached

TOKENS = torch.arange(24).reshape(2, 12) % 20


def mlp_loss(model):
    return functional.mse_loss(model(torch.ones(4, 8)), torch.zeros(4, 4))


def cnn_loss(model):
    images = torch.linspace(-1.0, 1.0, 4 * 64).reshape(4, 1, 8, 8)
    return functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0]))


HOSTS = [
    (Mlp, mlp_loss),
    (ResidualCnn, cnn_loss),
    (CharTransformer, lambda model: model(TOKENS, TOKENS.roll(1, 1))),
]
ALL = pytest.mark.parametrize(
    ("factory", "loss_of"), HOSTS, ids=["dropout_mlp", "batch_norm_cnn", "tied_transformer"]
)


@ALL
def test_a_sound_host_passes_every_probe(factory, loss_of):
    sheet = evaluate_host("run-host", factory(), loss_of, issued_at=5)

    assert (sheet.blueprint_id, sheet.issued_at) == ("run-host", 5)
    assert set(sheet.hazards.values()) == {"ok"}
    assert len(sheet.hazards) == 6
    assert (sheet.risk_score, sheet.hazard_band) == (0.1, HazardBand.LOW)


@ALL
def test_the_host_is_bit_identical_afterwards(factory, loss_of):
    host = factory()
    loss_of(host).backward()
    host.register_buffer("counter", torch.zeros(1))
    tensors = {**dict(host.named_parameters()), **dict(host.named_buffers())}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    gradients = {name: tensor.grad.clone() for name, tensor in host.named_parameters()}
    random_state = torch.get_rng_state()

    evaluate_host("run-host", host, loss_of)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert host.training
    for name, tensor in {**dict(host.named_parameters()), **dict(host.named_buffers())}.items():
        assert tensor is tensors[name]
        assert tensor._version == versions[name]
        assert torch.equal(tensor, values[name]), name
        assert name not in gradients or torch.equal(tensor.grad, gradients[name]), name


def trained_weights(steps, meanwhile):
    torch.manual_seed(3)
    host = Mlp()
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
    for step in range(steps):
        if step == steps // 2:
            meanwhile(host)
        optimizer.zero_grad()
        mlp_loss(host).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in host.parameters()])


def test_training_goes_on_as_if_the_host_had_never_been_tried():
    undisturbed = trained_weights(6, lambda _: None)
    tried = trained_weights(6, lambda host: evaluate_host("run-host", host, mlp_loss))

    assert torch.equal(undisturbed, tried)


def test_an_attached_probe_neither_hears_of_the_trial_nor_loses_its_hooks():
    host = Mlp()
    probe, publisher = attached(host, sample_every=1)
    hooks = {name: len(part._forward_hooks) for name, part in host.named_modules()}
    calls = []
    host.first.register_forward_hook(lambda *_: calls.append(1))

    sheet = evaluate_host("run-host", host, mlp_loss)

    assert set(sheet.hazards.values()) == {"ok"}
    assert not calls
    assert not publisher.states
    mlp_loss(host)
    assert len(calls) == 1
    assert {name: len(part._forward_hooks) for name, part in host.named_modules()} == {
        **hooks,
        "first": hooks["first"] + 1,
    }
    assert not probe.statistics().errors
    probe.close()


def deep(gain):
    """Return sixteen linear layers that each scale by ``gain``."""
    host = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(16)))
    with torch.no_grad():
        for layer in host:
            nn.init.orthogonal_(layer.weight, gain=gain)
        host[0].weight.mul_(gain**-15)
    return host


def test_a_host_whose_gradient_explodes_on_its_way_back_is_found_out():
    host = deep(4.0)
    sheet = evaluate_host("run-host", host, lambda model: model(torch.ones(4, 8)).square().mean())

    assert sheet.hazards["grad_instability"] == "explode"
    assert sheet.risk_score >= 0.4


class Saturated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(16))

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


def test_a_host_whose_gradient_vanishes_is_found_out():
    sheet = evaluate_host("run-host", Saturated(), lambda model: model(torch.ones(4, 8)).mean())

    assert sheet.hazards["grad_instability"] == "vanish"


def test_a_host_that_leaks_is_a_risk_to_memory():
    class Leaking(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.held = []

        def forward(self, x):
            self.held.append(torch.zeros(5 * 2**20, dtype=torch.uint8))
            return super().forward(x)

    host = Leaking()
    sheet = evaluate_host("run-host", host, lambda model: model(torch.ones(4, 8)).mean())

    assert sheet.hazards["oom_risk"] == "risk"
    assert not host.held


def test_a_host_without_a_weight_matrix_can_be_tried():
    sheet = evaluate_host("run-host", nn.LayerNorm(8), lambda model: model(torch.rand(4, 8)).square().mean())

    assert sheet.hazards["grad_instability"] == "ok"


def test_a_host_in_evaluation_mode_stays_in_it():
    host = ResidualCnn().eval()
    before = copy.deepcopy(host.state_dict())
    evaluate_host("run-host", host, cnn_loss)

    assert not host.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())


def test_a_loss_that_raises_is_a_failure_and_never_an_exception():
    def broken(model):
        raise KeyError("batch")

    verdict = evaluate_host("run-host", Mlp(), broken, issued_at=9)

    assert isinstance(verdict, BlueprintSafetyFailed)
    assert (verdict.blueprint_id, verdict.issued_at) == ("run-host", 9)
    assert verdict.reason == "KeyError: 'batch'"


def test_a_loss_of_another_model_is_a_failure_that_leaves_the_other_model_alone():
    host = Mlp()
    verdict = evaluate_host("run-host", Mlp(), lambda _: mlp_loss(host))

    assert verdict.reason.startswith("LossIndependent")
    assert all(parameter.grad is None for parameter in host.parameters())


def test_a_host_can_be_tried_without_gradients_being_enabled_around_it():
    with torch.no_grad():
        sheet = evaluate_host("run-host", Mlp(), mlp_loss)

    assert sheet.hazards["grad_instability"] == "ok"
