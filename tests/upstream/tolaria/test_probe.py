"""The probe in a training loop: what it publishes, that training does not notice, that it never raises."""

from __future__ import annotations

import copy
import io
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from schemas.catalogue import MESSAGES, Stream
from schemas.codec import decode_payload, encode_payload
from schemas.enums import CompileStatus
from tamiyo_stream.upstream.tolaria.instruments import Instruments
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.tolaria.host_models import CharTransformer, DataDependent, Learned, Mlp, ResidualCnn, encoder
from tests.upstream.tolaria.recording import RecordingPublisher, attached

TOKENS = torch.arange(20).reshape(2, 10)
HOSTS = {
    "mlp": (Mlp, lambda model: model(torch.randn(4, 8)).square().mean()),
    "cnn": (ResidualCnn, lambda model: model(torch.randn(4, 1, 6, 6)).square().mean()),
    "transformer": (CharTransformer, lambda model: model(TOKENS, TOKENS)),
    "encoder": (encoder, lambda model: model(torch.randn(2, 5, 16)).square().mean()),
    "data-dependent": (DataDependent, lambda model: model(torch.randn(3, 6)).square().mean()),
    "own parameter": (Learned, lambda model: model(torch.randn(2, 5)).square().mean()),
}


def run(host, probe_settings, steps=5):
    """Train a seeded run; return losses, final weights and gradients, and the publisher."""
    make, loss_of = HOSTS[host]
    torch.manual_seed(3)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    probe, publisher = (None, None) if probe_settings is None else attached(model, optimizer, **probe_settings)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if probe is not None:
            probe.step(loss=loss, samples=4)
    if probe is not None:
        assert not probe.statistics().errors
        probe.close()
    return losses, list(model.state_dict().values()), [p.grad for p in model.parameters()], publisher


@pytest.mark.parametrize("host", HOSTS)
def test_training_is_bit_identical_with_the_probe(host):
    plain = run(host, None)
    probed = run(host, {"sample_every": 1})

    assert plain[0] == probed[0]
    for expected, got in zip(plain[1] + plain[2], probed[1] + probed[2], strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("host", HOSTS)
def test_one_blueprint_then_one_aligned_packet_per_step(host):
    publisher = run(host, {"sample_every": 2})[3]

    assert [stream for stream, _ in publisher.sent] == [Stream.BLUEPRINTS] + [Stream.STATE] * 5
    [blueprint] = publisher.blueprints
    for step, state in enumerate(publisher.states):
        assert (state.global_step, state.packet_id) == (step, f"run-step-{step}")
        assert (state.blueprint_id, state.blueprint_version) == (
            blueprint.blueprint_id,
            blueprint.blueprint_version,
        )
        assert len(state.layers.gradient_norm) == len(blueprint.graph.layers.layer_id)
        assert len(state.activations.stability) == len(blueprint.graph.activations.activation_id)
        assert len(state.parameters.momentum) == len(blueprint.graph.parameters.parameter_id)
        decode_payload(MESSAGES["SystemStatePacket"], encode_payload(state))


def test_hooks_are_gone_after_close():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, _ = attached(model, optimizer)
    probe.close()

    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_hooks_are_installed_for_sampled_steps_only():
    model = Mlp()
    probe, _ = attached(model, sample_every=3)
    hooked = []
    for _ in range(6):
        hooked.append(bool(model.first._forward_hooks))
        probe.step(loss=1.0)

    assert hooked == [True, False, False, True, False, False]


def test_metrics_hold_what_was_measured_and_nothing_else():
    model = Mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    probe, publisher = attached(model, optimizer)
    probe.step()
    for loss in (2.0, 3.0):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        probe.step(loss=loss, samples=32, metrics={"accuracy": 0.5})

    first, _, third = (state.training_metrics for state in publisher.states)
    assert {"loss", "gradient_norm", "step_latency_ms", "samples_per_s", "hook_latency_ms"}.isdisjoint(first)
    assert (third["loss"], third["loss_delta"]) == (3.0, 1.0)
    assert third["loss_ewma"] == pytest.approx(2.1)
    assert third["loss_volatility"] == pytest.approx(0.3)
    assert third["samples_per_s"] == pytest.approx(32e3 / third["step_latency_ms"])
    assert third["hook_latency_ms"] > 0
    assert (third["optimizer_lr"], third["optimizer_momentum"], third["optimizer_family_index"]) == (0.02, 0.9, 2)
    assert third["accuracy"] == 0.5


def test_epoch_and_validation_figures_are_passed_on():
    probe, publisher = attached(Mlp())
    probe.step(loss=1.0, epoch=4, validation_loss=0.5, validation_accuracy=0.75)

    [state] = publisher.states
    assert (state.current_epoch, state.validation_loss, state.validation_accuracy) == (4, 0.5, 0.75)
    assert state.hardware_context.device_type == "cpu"


def test_a_diverged_loss_is_published_as_nan_and_kept_out_of_the_statistics():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer, sample_every=1)
    for factor in (1.0, math.nan, 1.0):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 8)).sum() * factor
        loss.backward()
        optimizer.step()
        probe.step(loss=loss)

    second, third = publisher.states[1:]
    assert math.isnan(second.training_loss)
    assert math.isnan(second.training_metrics["gradient_norm"])
    assert second.training_metrics["loss_ewma"] == publisher.states[0].training_loss
    assert math.isnan(third.training_loss)  # the weights are lost, the probe is not
    decode_payload(MESSAGES["SystemStatePacket"], encode_payload(second))
    assert not probe.statistics().errors


def test_a_resumed_run_counts_on():
    probe, publisher = attached(Mlp(), first_step=100)

    assert [probe.step(loss=1.0), probe.step(loss=1.0)] == ["run-step-100", "run-step-101"]
    assert [state.global_step for state in publisher.states] == [100, 101]


def test_a_model_that_grows_gets_a_new_blueprint_and_loses_no_step():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    for step in range(4):
        if step == 2:
            model.second = nn.Sequential(model.second, nn.Linear(16, 16))
            optimizer.add_param_group({"params": model.second[1].parameters()})
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        probe.step(loss=1.0)

    old, new = publisher.blueprints
    assert old.blueprint_id == new.blueprint_id
    assert new.graph.layers.layer_id == ["first", "second.0", "second.1", "last"]
    versions = [state.blueprint_version for state in publisher.states]
    assert versions == [old.blueprint_version] * 2 + [new.blueprint_version] * 2
    assert [len(state.layers.gradient_norm) for state in publisher.states] == [3, 3, 4, 4]
    assert np.isfinite(publisher.states[2].layers.gradient_norm).all()
    assert np.isfinite(publisher.states[3].layers.latency_ms).all()
    assert not probe.statistics().errors


def test_a_replaced_weight_is_followed_without_a_new_blueprint():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, publisher = attached(model, optimizer)
    model.first.weight = nn.Parameter(torch.zeros_like(model.first.weight))
    optimizer.param_groups[0]["params"][0] = model.first.weight
    model(torch.ones(2, 8)).sum().backward()
    probe.step(loss=1.0)

    assert len(publisher.blueprints) == 1
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in model.first.parameters()))
    assert publisher.states[0].layers.gradient_norm[0] == pytest.approx(expected, rel=1e-5)


def test_a_model_without_parameters_turns_the_probe_off_and_says_why(caplog):
    model = nn.Sequential(nn.Flatten())
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with caplog.at_level(logging.WARNING, logger="tamiyo.probe"):
        probe, publisher = attached(model, optimizer)

    assert probe.step(loss=1.0) is None
    assert not publisher.sent
    assert "no trainable parameter" in probe.statistics().reason
    assert not probe.statistics().enabled
    [record] = caplog.records
    assert "training goes on without Tamiyo" in record.getMessage()
    probe.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"run_id": ""}, "run_id"),
        ({"run_id": "x" * 180}, "run_id"),
        ({"run_id": "run", "sample_every": 0}, "sample_every"),
        ({"run_id": "run", "first_step": -1}, "first_step"),
        ({"run_id": "run", "redis_url": "http://somewhere", "publisher": None}, "redis_url"),
    ],
)
def test_settings_that_cannot_work_turn_the_probe_off(settings, reason):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = TolariaProbe.attach(model, optimizer, **{"publisher": RecordingPublisher(), **settings})

    assert probe.step(loss=1.0) is None
    assert reason in probe.statistics().reason


class Broken:
    """A publisher that fails at everything but the blueprint."""

    def publish(self, stream, *_, **__):
        if stream is Stream.STATE:
            raise RuntimeError("broken publisher")
        return True


def test_an_error_inside_the_probe_is_counted_and_logged_once(caplog):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = TolariaProbe.attach(model, optimizer, run_id="run", publisher=Broken())
    with caplog.at_level(logging.WARNING, logger="tamiyo.probe"):
        for _ in range(3):
            probe.step(loss=1.0)

    assert probe.statistics().errors == {"packet": 3}
    [record] = caplog.records
    assert "broken publisher" in record.getMessage()


@pytest.mark.parametrize("loss", [torch.ones(3), "high", object()], ids=["vector", "text", "object"])
def test_a_loss_that_is_no_number_costs_the_loss_and_not_the_step(loss):
    probe, publisher = attached(Mlp())
    probe.step(loss=loss)
    probe.step(loss=1.0)

    assert [state.training_loss for state in publisher.states] == [None, 1.0]
    assert probe.statistics().errors["measuring"] == 1


def test_an_error_in_the_users_forward_stays_the_users():
    model = Mlp()
    probe, publisher = attached(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(2, 3))
    assert not torch.overrides._get_current_function_mode_stack()
    model(torch.ones(2, 8)).sum().backward()
    probe.step(loss=1.0)

    assert len(publisher.states) == 1


def test_an_observed_model_can_be_copied_and_saved():
    model = Mlp()
    probe, publisher = attached(model)
    clone = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)

    for other in (clone, loaded):
        other(torch.ones(9, 8)).sum().backward()  # must not be recorded as the model's pass
    model(torch.ones(2, 8)).sum().backward()
    probe.step(loss=1.0)
    assert publisher.states[0].layers.data_flow_volume[0] == 2 * 16 * 4


def test_a_wrapped_model_is_seen_through():
    model = Mlp()
    probe, publisher = attached(nn.DataParallel(model), torch.optim.SGD(model.parameters(), lr=0.1))

    assert publisher.blueprints[0].graph.layers.layer_id == ["first", "second", "last"]
    assert probe.statistics().structure_source == "fx"


def test_a_compiled_model_is_seen_through_and_never_hooked():
    model = Mlp()
    compiled = torch.compile(model, backend="eager")
    probe, publisher = attached(compiled, torch.optim.SGD(model.parameters(), lr=0.1))
    hooked = [module for module in compiled.modules() if module._forward_hooks]
    model(torch.ones(2, 8)).sum().backward()
    probe.step(loss=1.0)

    assert not hooked  # hooks that come and go would have it compiled anew each time
    assert publisher.blueprints[0].compiled.status is CompileStatus.COMPILED
    assert publisher.blueprints[0].graph.layers.layer_id == ["first", "second", "last"]
    assert np.isfinite(publisher.states[0].layers.gradient_norm).all()
    assert np.isnan(publisher.states[0].layers.latency_ms).all()


def test_a_step_whose_measurement_fails_is_published_with_its_loss(monkeypatch):
    def fail(*_):
        raise RuntimeError("broken instrument")

    monkeypatch.setattr(Instruments, "measure", fail)
    probe, publisher = attached(Mlp())
    probe.step(loss=torch.tensor(2.5))

    [state] = publisher.states
    assert (state.training_loss, state.layers) == (2.5, None)
    assert probe.statistics().errors == {"measuring": 1}


def test_two_probes_watch_two_models_at_once():
    models = [Mlp(), ResidualCnn()]
    inputs = [torch.ones(2, 8), torch.ones(2, 1, 6, 6)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    probes = [attached(*pair, sample_every=1) for pair in zip(models, optimizers, strict=True)]
    for _ in range(2):
        for model, x, optimizer, (probe, _) in zip(models, inputs, optimizers, probes, strict=True):
            optimizer.zero_grad()
            loss = model(x).sum()
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)

    for probe, publisher in probes:
        assert not probe.statistics().errors
        assert np.isfinite(publisher.states[-1].layers.latency_ms).all()
    assert [len(publisher.states[-1].layers.weight_norm) for _, publisher in probes] == [3, 12]


def test_two_probes_can_watch_one_model():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [attached(model, optimizer, sample_every=1) for _ in range(2)]
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    for probe, publisher in probes:
        probe.step(loss=1.0)
        assert np.isfinite(publisher.states[0].activations.saturation_rate).all()


def test_closing_twice_and_stepping_afterwards_does_nothing():
    probe, publisher = attached(Mlp())
    probe.close()
    probe.close()

    assert probe.step(loss=1.0) is None
    assert not publisher.states
    assert probe.statistics().reason == "closed"
