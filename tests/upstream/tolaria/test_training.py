"""A probed training run is the same training run, whatever happens to the probe or to Redis."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from schemas.catalogue import Stream
from schemas.codec import encode_payload
from schemas.entry import decode_entry
from schemas.signing import Keyring
from tamiyo_stream.upstream.embedded_redis import free_port
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.tolaria import host_models
from tests.upstream.waiting import wait_until

HOSTS = {
    "mlp": (host_models.Mlp, lambda: torch.randn(5, 8)),
    "cnn": (host_models.ResidualCnn, lambda: torch.randn(4, 1, 8, 8)),
    "transformer": (host_models.CharTransformer, lambda: torch.randint(20, (3, 12))),
    "encoder": (host_models.encoder, lambda: torch.randn(2, 3, 16)),
    "loop": (host_models.DataDependent, lambda: torch.randn(2, 6)),
    "partly": (host_models.PartlyTraceable, lambda: torch.randn(2, 4)),
    "learned": (host_models.Learned, lambda: torch.randn(2, 5)),
}


class Listed:
    """A publisher that keeps what it is given, after checking that readers would take it."""

    def __init__(self):
        self.messages = []
        self.kept = set()

    def publish(self, stream, message, *, keep_as=""):
        encode_payload(message)
        self.messages.append((stream, message))
        self.kept |= {keep_as} - {""}
        return True

    def on(self, stream):
        return [message for given, message in self.messages if given is stream]

    @property
    def states(self):
        return self.on(Stream.STATE)

    @property
    def blueprints(self):
        return self.on(Stream.BLUEPRINTS)


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model, optimizer, batches, probe=None):
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if probe is not None:
            probe.step(loss, samples=len(batch))
    return losses


def attached(model, optimizer=None, **options):
    listed = Listed()
    optimizer = sgd(model) if optimizer is None else optimizer
    return TolariaProbe.attach(model, optimizer, run_id="run", publisher=listed, **options), listed, optimizer


@pytest.mark.parametrize("host", HOSTS)
def test_the_training_trajectory_is_bit_identical_with_the_probe(host):
    make, batch = HOSTS[host]
    torch.manual_seed(3)
    plain = make()
    probed = copy.deepcopy(plain)
    batches = [batch() for _ in range(6)]

    torch.manual_seed(7)
    expected = train(plain, sgd(plain), batches)
    torch.manual_seed(7)
    optimizer = sgd(probed)
    probe, listed, _ = attached(probed, optimizer, sample_every=2)
    measured = train(probed, optimizer, batches, probe)

    assert measured == expected
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), probed.state_dict().values(), strict=True)
    )
    assert [state.global_step for state in listed.states] == [0, 1, 2, 3, 4, 5]
    assert probe.statistics().errors == {}


@pytest.mark.parametrize("host", HOSTS)
def test_norms_are_those_of_autograd(host):
    make, batch = HOSTS[host]
    model = make()
    probe, listed, optimizer = attached(model)
    optimizer.zero_grad()
    model(batch()).float().pow(2).mean().backward()
    gradients = {
        name: p.grad.clone() for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None
    }
    optimizer.step()
    probe.step(1.0)

    layers, state = listed.blueprints[0].graph.layers.layer_id, listed.states[0]
    for position, layer in enumerate(layers):
        own = {name for name in gradients if name == layer or name.startswith(f"{layer}.")}
        weights = [p.detach() for name, p in model.named_parameters(remove_duplicate=False) if name in own]
        if own:
            expected = math.sqrt(sum(float(gradients[name].pow(2).sum()) for name in own))
            assert state.layers.gradient_norm[position] == pytest.approx(expected, rel=1e-5)
            expected = math.sqrt(sum(float(weight.pow(2).sum()) for weight in weights))
            assert state.layers.weight_norm[position] == pytest.approx(expected, rel=1e-5)
    unique = {id(p): p.grad for p in model.parameters() if p.grad is not None}.values()
    total = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in unique))
    assert state.training_metrics["gradient_norm"] == pytest.approx(total, rel=1e-5)


def test_a_nan_loss_is_published():
    model = host_models.Mlp()
    probe, listed, optimizer = attached(model)
    loss = model(torch.full((2, 8), math.nan)).sum()
    loss.backward()
    optimizer.step()
    probe.step(loss)

    assert math.isnan(listed.states[0].training_loss)
    assert probe.statistics().errors == {}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_evaluation_between_steps_is_not_measured(mode):
    model = host_models.Mlp()
    probe, listed, optimizer = attached(model, sample_every=1)
    train(model, optimizer, [torch.randn(4, 8)], probe)
    model.eval()
    with mode():
        model(torch.randn(1000, 8))
    model.train()
    train(model, optimizer, [torch.randn(4, 8)], probe)

    assert listed.states[1].layers.data_flow_volume[0] == 4 * 16 * 4


def test_the_probe_takes_all_its_hooks_off_when_closed():
    model = host_models.ResidualCnn()
    probe, _, optimizer = attached(model, sample_every=1)
    probe.close()

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert probe.step(1.0) is None


def test_an_added_child_gives_a_new_blueprint_version_and_loses_no_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    probe, listed, optimizer = attached(model)
    train(model, optimizer, [torch.randn(2, 4)] * 2, probe)
    grafted = nn.Linear(4, 4)
    model.append(grafted)
    optimizer.add_param_group({"params": grafted.parameters()})
    train(model, optimizer, [torch.randn(2, 4)] * 2, probe)

    old, new = listed.blueprints
    assert (old.blueprint_id, new.blueprint_id) == ("run-host", "run-host")
    assert "3" in new.graph.layers.layer_id
    versions = [state.blueprint_version for state in listed.states]
    assert versions[:2] == [old.blueprint_version] * 2
    assert versions[-1] == new.blueprint_version
    assert [state.global_step for state in listed.states] == [0, 1, 2, 3]
    by_version = {old.blueprint_version: 2, new.blueprint_version: 3}
    assert all(len(state.layers.gradient_norm) == by_version[state.blueprint_version] for state in listed.states)


def test_what_is_still_there_goes_on_from_what_was_known_of_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    probe, listed, optimizer = attached(model, sample_every=1)
    train(model, optimizer, [torch.randn(2, 4)] * 4, probe)
    grafted = nn.Linear(4, 4)
    model.append(grafted)
    optimizer.add_param_group({"params": grafted.parameters(), "name": "grafted"})
    train(model, optimizer, [torch.randn(2, 4)], probe)

    before, after = listed.states[-2:]
    assert after.blueprint_version != before.blueprint_version
    old = [position for position, name in enumerate(listed.blueprints[-1].graph.layers.layer_id) if name != "3"]
    assert np.isfinite(np.asarray(after.layers.latency_ms)[old]).all()
    assert np.isnan(np.asarray(after.layers.latency_ms)[-1])
    assert (np.asarray(after.layers.gradient_variance)[old] > 0).all()  # a first sample has none
    assert after.activations.stability[0] == before.activations.stability[0]
    assert np.isfinite(after.parameters.update_magnitude[0])


@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Tanh()), nn.Linear(2, 2).requires_grad_(False)]
)
def test_a_model_without_parameters_turns_the_probe_off_with_one_clear_line(model, caplog):
    optimizer = sgd(nn.Linear(1, 1))
    probe, listed, _ = attached(model, optimizer)

    assert not probe.statistics().enabled
    assert "trainable parameter" in probe.statistics().reason
    assert probe.step(1.0) is None
    assert listed.messages == []
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_gradient_accumulation_reports_the_accumulated_gradient():
    model = nn.Linear(3, 1)
    probe, listed, optimizer = attached(model)
    optimizer.zero_grad()
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    probe.step(1.0)

    assert listed.states[0].layers.gradient_norm[0] == pytest.approx(3 * 2.0)


def test_parameters_that_got_no_gradient_are_not_measured():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    probe, listed, optimizer = attached(model)
    model["used"](torch.randn(1, 2)).sum().backward()
    optimizer.step()
    probe.step(1.0)

    norms = dict(
        zip(listed.blueprints[0].graph.layers.layer_id, listed.states[0].layers.gradient_norm, strict=True)
    )
    assert norms["used"] > 0
    assert math.isnan(norms["idle"])


def test_zeroed_gradients_before_the_probe_do_not_matter():
    model = nn.Linear(3, 1)
    probe, listed, optimizer = attached(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    probe.step(1.0)

    assert listed.states[0].layers.gradient_norm[0] == pytest.approx(2.0)


def test_two_probes_at_once_do_not_mix():
    first, second = host_models.Mlp(), host_models.ResidualCnn()
    probe_a, listed_a, optimizer_a = attached(first, sample_every=1)
    probe_b, listed_b, optimizer_b = attached(second, sample_every=1)
    for _ in range(3):
        train(first, optimizer_a, [torch.randn(4, 8)], probe_a)
        train(second, optimizer_b, [torch.randn(2, 1, 8, 8)], probe_b)

    assert all(len(state.layers.gradient_norm) == 3 for state in listed_a.states)
    assert all(len(state.layers.gradient_norm) == 12 for state in listed_b.states)
    assert not np.isnan(listed_a.states[-1].activations.saturation_rate).any()
    assert not np.isnan(listed_b.states[-1].activations.saturation_rate).any()


def test_two_probes_on_one_model_both_measure_it():
    model = host_models.Mlp()
    one, listed_one, optimizer = attached(model, sample_every=1)
    two, listed_two, _ = attached(model, optimizer, sample_every=1)
    for _ in range(2):
        train(model, optimizer, [torch.randn(4, 8)], one)
        two.step(1.0)

    assert len(listed_one.states) == len(listed_two.states) == 2
    assert np.allclose(listed_one.states[1].layers.weight_norm, listed_two.states[1].layers.weight_norm)
    assert one.statistics().errors == two.statistics().errors == {}


def test_a_checkpointed_forward_is_probed_without_harm():
    class Checkpointed(host_models.Mlp):
        def forward(self, x):
            x = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
            return self.last(functional.relu(self.second(x)))

    model = Checkpointed()
    probe, listed, optimizer = attached(model, sample_every=1)
    losses = train(model, optimizer, [torch.randn(4, 8)] * 3, probe)

    assert all(map(math.isfinite, losses))
    assert len(listed.states) == 3


def test_a_broken_publisher_is_counted_and_training_goes_on():
    class Broken:
        def publish(self, stream, *_, **__):
            if stream is Stream.STATE:
                raise RuntimeError("broken")
            return True

    model = host_models.Mlp()
    optimizer = sgd(model)
    probe = TolariaProbe.attach(model, optimizer, run_id="run", publisher=Broken())
    losses = train(model, optimizer, [torch.randn(4, 8)] * 3, probe)

    assert all(map(math.isfinite, losses))
    assert sum(probe.statistics().errors.values()) == 3


def test_a_loss_of_the_wrong_shape_costs_no_step():
    model = host_models.Mlp()
    probe, listed, _ = attached(model)
    probe.step(torch.ones(3))

    assert [state.global_step for state in listed.states] == [0]
    assert listed.states[0].training_loss is None


def test_the_blueprint_comes_before_the_first_state_and_all_arrives_signed(server, client):
    keyring = Keyring({"k": b"secret"})
    model = host_models.Mlp()
    optimizer = sgd(model)
    with TolariaProbe.attach(model, optimizer, run_id="run", redis_url=server.url, keyring=keyring) as probe:
        train(model, optimizer, [torch.randn(4, 8)] * 5, probe)

    [(blueprint_id, blueprint)] = client.xrange(Stream.BLUEPRINTS)
    states = client.xrange(Stream.STATE)
    assert tuple(map(int, blueprint_id.split(b"-"))) <= tuple(map(int, states[0][0].split(b"-")))
    version = decode_entry(blueprint, keyring).message.blueprint_version
    packets = [decode_entry(fields, keyring).message for _, fields in states]
    assert [packet.packet_id for packet in packets] == [f"run-step-{n}" for n in range(5)]
    assert {packet.blueprint_version for packet in packets} == {version}


def test_training_goes_on_without_redis_and_nothing_is_lost_when_it_comes_back(server, client):
    model = host_models.Mlp()
    optimizer = sgd(model)
    with TolariaProbe.attach(model, optimizer, run_id="run", redis_url=server.url) as probe:
        train(model, optimizer, [torch.randn(4, 8)] * 2, probe)
        wait_until(lambda: probe.statistics().publisher.queued == 0, "the first steps are sent")
        server.stop(kill=True)
        train(model, optimizer, [torch.randn(4, 8)] * 5, probe)
        wait_until(lambda: probe.statistics().publisher.retries, "the outage was noticed")
        server.start()
        wait_until(lambda: probe.statistics().publisher.queued == 0, "the rest is sent")

    # The server came back empty: it must know the blueprint again before it sees a state of it.
    assert client.xlen(Stream.BLUEPRINTS) == 1
    steps = [decode_entry(fields, None).message.global_step for _, fields in client.xrange(Stream.STATE)]
    assert steps == [2, 3, 4, 5, 6]


def test_no_redis_at_all_costs_neither_training_nor_time_at_the_end(caplog):
    model = host_models.Mlp()
    optimizer = sgd(model)
    probe = TolariaProbe.attach(model, optimizer, run_id="run", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    losses = train(model, optimizer, [torch.randn(4, 8)] * 3, probe)
    wait_until(lambda: probe.statistics().publisher.retries, "the outage was noticed")
    probe.close(timeout_s=0)

    assert all(map(math.isfinite, losses))
    assert "check that Redis runs" in caplog.text


def test_a_wrong_password_is_said_and_training_goes_on(server, client, caplog):
    client.config_set("requirepass", "right")
    model = host_models.Mlp()
    optimizer = sgd(model)
    url = server.url.replace("//", "//:wrong@")
    probe = TolariaProbe.attach(model, optimizer, run_id="run", redis_url=url)
    losses = train(model, optimizer, [torch.randn(4, 8)] * 3, probe)
    wait_until(lambda: probe.statistics().publisher.retries, "the refusal was noticed")
    probe.close(timeout_s=0)

    assert all(map(math.isfinite, losses))
    assert "user or password is wrong" in caplog.text


@pytest.mark.parametrize("options", [{"redis_url": "http://nowhere"}, {"run_id": ""}, {"sample_every": 0}])
def test_bad_options_turn_the_probe_off_and_raise_nothing(options):
    model = host_models.Mlp()
    probe = TolariaProbe.attach(
        model, sgd(model), **{"run_id": "run", "redis_url": "redis://127.0.0.1:1/0", **options}
    )

    assert not probe.statistics().enabled
    assert probe.statistics().reason
    assert probe.step(1.0) is None
