"""The export: every mandatory seed feature from the first step on, true values only, changes at once."""

from __future__ import annotations

import pytest
import redis
import torch

from schemas.catalogue import MESSAGES, Stream
from schemas.codec import decode_payload, encode_payload
from schemas.entry import decode_entry
from schemas.enums import SeedLifecycleStage
from schemas.kasmina import SeedExport
from schemas.signing import Keyring
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.relations import RELATIONS
from tamiyo_stream.graph.sources import path_of, walk
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.runs.tables import Tables
from tamiyo_stream.upstream.kasmina.host import SeedHost
from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.site import SeedSite
from tamiyo_stream.upstream.publisher import StreamPublisher
from tamiyo_stream.upstream.tolaria.probe import TolariaProbe
from tests.upstream.kasmina.gardens import KERNELS, LIMITS, SITES, Garden, Training

MANDATORY = [channel for channel in NODES["seed"].channels if channel.mandatory]
EDGE_SOURCES = [
    attribute.source
    for relation in RELATIONS
    if relation.source == "seed"
    for attribute in relation.attributes
    if attribute.source.startswith("seed.")
]


@pytest.fixture(scope="module")
def dormant():
    """The first export of a host whose seeds are dormant."""
    return Garden().train(1).exports[0].seeds


@pytest.mark.parametrize("channel", MANDATORY, ids=lambda channel: channel.name)
def test_a_dormant_seed_has_every_mandatory_feature_from_the_first_step_on(dormant, channel):
    for seed in dormant:
        assert walk(path_of(channel.source), {"seed": seed}) is not None


@pytest.mark.parametrize("source", EDGE_SOURCES)
def test_a_dormant_seed_has_every_attribute_of_its_edges(dormant, source):
    for seed in dormant:
        layers = [{"seed": {"monitored_layers": layer}} for layer in seed.monitored_layers]
        subjects = layers if "monitored_layers" in source else [{"seed": seed}]
        assert subjects
        assert all(walk(path_of(source), subject) is not None for subject in subjects)


@pytest.mark.parametrize(
    "stage", [Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED, Stage.EMBARGOED]
)
def test_the_worker_finds_its_seed_coverage_complete(stage):
    training = Training()
    garden = Garden(training, export_every=1)
    probe = TolariaProbe.attach(training.model, training.optimizer, run_id="run", publisher=garden.publisher)
    garden.germinated(policy_version="v1").train(2)
    probe.step(training.step())
    if stage is Stage.EMBARGOED:
        garden.host.cull("s1")
    if stage is not Stage.DORMANT:
        garden.until(stage)
    garden.train()
    probe.step(training.step())  # the model changed: the next packet has the new columns
    probe.step(training.step())
    tables = Tables()
    for blueprint in garden.publisher.blueprints:
        tables.add_blueprint(blueprint)
    seeds = {seed.seed_id: seed for seed in garden.exports[-1].seeds}
    packet = garden.publisher.states[-1]
    keys = GraphBuilder(Registries()).build(RunState(run_id="run", seeds=seeds), packet, tables).coverage.keys

    names = {f"seed.{channel.name}" for channel in MANDATORY}
    assert {key for key in keys if key.startswith("seed.")} >= names
    assert {key: keys[key] for key in names if keys[key] < 1.0} == {}
    edges = {key: share for key, share in keys.items() if "seed_monitors" in key or "seed_param_allowed" in key}
    assert edges
    assert set(edges.values()) == {1.0}


def test_a_dormant_seed_says_nothing_it_does_not_know(dormant):
    [seed, _] = dormant

    assert (seed.gradient_norm, seed.learning_rate, seed.age_epochs, seed.blueprint_id) == (None,) * 4
    assert (seed.alpha, seed.risk_score, seed.policy_version, seed.blend_allowed) == (0.0, 0.0, "", False)
    assert seed.success_rate == 0.5


def test_a_site_is_described_by_the_blueprints_own_names(dormant):
    [seed, other] = dormant

    assert [layer.layer_id for layer in seed.monitored_layers] == ["middle"]
    assert (seed.monitoring_scope, seed.layer_depth) == (pytest.approx(1 / 3), 1)
    assert seed.allowed_parameters == ["group0"]
    assert seed.optimizer_families == ["adam"]
    assert (seed.specialization, other.specialization) == ("dense", "general")
    assert (seed.risk_tolerance, other.risk_tolerance) == (0.5, 0.8)
    assert [seed.monitored_layers[0].monitoring_frequency] == [0.1]
    assert seed.monitored_layers[0].adaptation_trigger_threshold == pytest.approx(LIMITS.regression_max * 0.5)


def test_activity_is_measured_and_lies_between_dead_and_fully_driven(dormant):
    assert all(0.05 < seed.activity_level < 1.0 for seed in dormant)


def test_a_grafted_seed_adds_what_is_measured_of_its_kernel():
    garden = Garden(export_every=1).train(6, epoch=3)
    garden.host.germinate("s1", "identity", {"blending_method_index": 3.0}, policy_version="tamiyo_gnn_v1")
    seed = garden.train(12, epoch=5).exported()

    assert seed.stage is SeedLifecycleStage.BLENDING
    assert seed.gradient_norm > 0
    assert seed.learning_rate == 0.01
    assert seed.age_epochs == 2
    assert (seed.blueprint_id, seed.policy_version) == ("identity", "tamiyo_gnn_v1")
    assert seed.allowed_parameters == ["group0", "seed.s1"]
    assert 0 < seed.risk_score < 1
    assert seed.alpha_schedule.method == "sigmoid"
    assert (seed.metrics["alpha_total_steps"], seed.metrics["blend_allowed"]) == (6.0, 1.0)
    assert 0 < seed.metrics["alpha_steps"] < 6
    assert 0 < seed.metrics["seed_to_host_norm"] < 0.5


def test_success_rate_counts_both_ends():
    garden = Garden().germinated().until(Stage.FOSSILIZED)
    garden.host.germinate("s2", "identity")
    garden.host.cull("s2")
    garden.train()

    assert garden.exported("s1").success_rate == pytest.approx(2 / 3)
    assert garden.exported("s2").success_rate == pytest.approx(1 / 3)


def test_what_changes_is_exported_in_its_step_and_the_rest_now_and_then():
    garden = Garden(export_every=7).train(6)
    assert [export.global_step for export in garden.exports] == [1]
    garden.host.germinate("s1", "identity")
    garden.train(2)
    assert [export.global_step for export in garden.exports] == [1, 7, 8]
    garden.train(7)
    assert [export.global_step for export in garden.exports] == [1, 7, 8, 15]
    garden.until(Stage.SHADOWING)
    assert [export.global_step for export in garden.exports][-7:] == list(
        range(garden.steps - 6, garden.steps + 1)
    )


def test_timestamps_never_go_back():
    stamps = [export.timestamp_ns for export in Garden(export_every=1).train(10).exports]

    assert stamps == sorted(stamps)


def test_the_newest_export_survives_a_redis_that_comes_back_empty():
    kept = []

    class Keeping:
        def publish(self, stream, _, *, keep_as=""):
            kept.append((stream, keep_as))
            return True

    training = Training()
    host = SeedHost.attach(training.model, training.optimizer, SITES, KERNELS, run_id="r7", publisher=Keeping())
    host.step(1, training.step())

    assert dict(kept)[Stream.SEEDS] == "r7-seeds"


def test_an_export_passes_the_wire_unchanged():
    export = Garden(export_every=1).germinated().until(Stage.BLENDING).exports[-1]

    decoded = decode_payload(MESSAGES["SeedExport"], encode_payload(export))

    assert encode_payload(decoded) == encode_payload(export)


def test_a_site_that_monitors_no_layer_of_its_own_measures_its_own_output():
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    training = Training()
    training.model.relu = torch.nn.Sequential(Scaled(), torch.nn.ReLU())
    seed = Garden(training, sites=[SeedSite("s1", "relu.0")]).train(1).exported()

    assert 0.05 < seed.activity_level < 1.0
    assert (seed.layer_depth, seed.monitored_layers) == (None, [])


def test_exports_and_telemetry_arrive_signed_on_a_real_redis(redis_url):
    training, keyring = Training(), Keyring({"k1": b"secret"})
    with SeedHost.attach(
        training.model, training.optimizer, SITES, KERNELS, run_id="run", redis_url=redis_url, keyring=keyring
    ) as host:
        for step in range(1, 12):
            host.step(step, training.step())
    with redis.Redis.from_url(redis_url) as client:
        exports = [decode_entry(fields, keyring).message for _, fields in client.xrange(Stream.SEEDS)]
        packets = [decode_entry(fields, keyring).message for _, fields in client.xrange(Stream.TELEMETRY)]

    assert [export.global_step for export in exports] == [1, 11]
    assert [seed.seed_id for seed in exports[0].seeds] == ["s1", "s2"]
    assert {packet.packet_id for packet in packets} >= {"kasmina-seed-s1-1", "kasmina-seed-s2-11"}


def test_a_publisher_that_was_given_is_not_closed(redis_url):
    training = Training()
    with StreamPublisher(redis_url) as publisher:
        SeedHost.attach(
            training.model, training.optimizer, SITES, KERNELS, run_id="run", publisher=publisher
        ).close()

        assert publisher.publish(Stream.SEEDS, SeedExport(run_id="run", timestamp_ns=1, seeds=[]))
