"""Sites are checked against the model and its blueprint when the host is attached; activity is measured there."""

from __future__ import annotations

import math

import pytest
import torch

from tamiyo_stream.upstream.connection import RedisUrlInvalid
from tamiyo_stream.upstream.kasmina.activity import activity_of
from tamiyo_stream.upstream.kasmina.host import SeedHost
from tamiyo_stream.upstream.kasmina.site import SeedSite, SiteInvalid
from tests.upstream.kasmina.gardens import KERNELS, SITES, Garden, Training


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"seed_id": ""}, "is empty"),
        ({"risk_tolerance": 1.5}, "give 0..1"),
        ({"allowed_blending_methods": ("cubic",)}, "names 'cubic'; use some of linear"),
    ],
)
def test_a_site_that_contradicts_itself_is_refused(fields, complaint):
    with pytest.raises(SiteInvalid, match=complaint):
        SeedSite(**{"seed_id": "s1", "layer_id": "middle", **fields})


@pytest.mark.parametrize(
    ("sites", "complaint"),
    [
        ([SeedSite("s1", "nowhere")], "layer_id of seed 's1'"),
        ([SeedSite("s1", "middle", ("nowhere",))], "names 'nowhere'; the blueprint has first, middle, last"),
        ([SeedSite("s1", "middle", allowed_parameters=("group7",))], "names 'group7'; the blueprint has group0"),
        ([SeedSite("s1", "middle"), SeedSite("s1", "first")], "seed_id 's1' is given twice"),
        ([SeedSite("s1", "middle"), SeedSite("s2", "middle")], "layer_id 'middle' is given twice"),
    ],
)
def test_a_site_that_does_not_fit_the_model_is_refused(sites, complaint):
    training = Training()

    with pytest.raises(SiteInvalid, match=complaint):
        Garden(training, sites=sites)
    assert not any(module._forward_hooks for module in training.model.modules())


@pytest.mark.parametrize("interval", ["export_every", "telemetry_every", "activity_every"])
def test_an_interval_below_one_step_is_refused(interval):
    with pytest.raises(ValueError, match=f"{interval} is 0"):
        Garden(**{interval: 0})


@pytest.mark.parametrize("run_id", ["", "r" * 171])
def test_a_run_id_must_leave_room_for_packet_ids(run_id):
    training = Training()
    with pytest.raises(ValueError, match="run_id has"):
        SeedHost.attach(training.model, training.optimizer, SITES, KERNELS, run_id=run_id)


def test_an_unusable_url_is_refused_and_leaves_no_hook():
    training = Training()
    with pytest.raises(RedisUrlInvalid):
        SeedHost.attach(training.model, training.optimizer, SITES, KERNELS, run_id="run", redis_url="nonsense")

    assert not any(module._forward_hooks for module in training.model.modules())


def test_a_wrapped_model_is_seen_through():
    training = Training()
    host = SeedHost.attach(
        torch.nn.DataParallel(training.model),
        training.optimizer,
        SITES,
        KERNELS,
        run_id="run",
        publisher=Garden().publisher,
    )
    host.step(1, training.step())

    assert not host.errors


def test_only_the_groups_that_train_the_site_are_allowed():
    training = Training()
    training.optimizer = torch.optim.SGD(
        [
            {"params": training.model.first.parameters(), "name": "stem"},
            {"params": training.model.middle.parameters()},
        ],
        lr=0.1,
    )
    garden = Garden(training).train()

    assert garden.exported("s1").allowed_parameters == ["group1"]
    assert garden.exported("s2").allowed_parameters == ["stem"]


def test_a_layer_that_gives_the_same_for_every_sample_is_dead():
    assert float(activity_of(torch.ones(8, 3))) == 0.0
    assert float(activity_of(torch.zeros(8, 3))) == 0.0


def test_a_layer_around_zero_is_fully_driven_by_its_input():
    x = torch.randn(500, 3)

    assert float(activity_of(x - x.mean(dim=0))) == pytest.approx(1.0)


def test_half_of_the_power_being_constant_is_an_activity_of_the_root_of_a_half():
    assert float(activity_of(torch.tensor([[0.0], [2.0]]))) == pytest.approx(math.sqrt(0.5))


def test_positions_of_a_sequence_count_as_samples():
    assert float(activity_of(torch.tensor([[[0.0], [2.0]]]))) == pytest.approx(math.sqrt(0.5))


def test_a_single_sample_says_nothing():
    assert math.isnan(float(activity_of(torch.ones(1, 3))))
