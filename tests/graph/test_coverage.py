"""Coverage: counts what upstream sent, never a default (domain.md §6.4)."""

from __future__ import annotations

import math

import msgspec
import pytest

from schemas.record import column_types
from schemas.tolaria import ActivationTelemetry, LayerTelemetry, ParameterTelemetry
from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.coverage import Tally, summarise
from tamiyo_stream.graph.registries import Registries
from tests.graph.samples import sample_blueprint, sample_packet, sample_run, sample_seed, sample_tables

COLUMNS = [
    (group, name)
    for group, record in (
        ("layers", LayerTelemetry), ("activations", ActivationTelemetry), ("parameters", ParameterTelemetry),
    )
    for name in column_types(record)
]  # fmt: skip


def coverage_of(blueprint, packet, *seeds, kernels=2):
    return GraphBuilder(Registries()).build(sample_run(*seeds), packet, sample_tables(blueprint, kernels)).coverage


def test_type_is_weighted_by_count_and_average_is_not():
    tallies = [
        Tally("node.layer", ("layer.a",), (True,), [1.0], 10),
        Tally("node.layer", ("layer.b",), (False,), [0.5], 10),
        Tally("node.seed", ("seed.a",), (True,), [0.0], 2),
    ]
    coverage = summarise(tallies, frozenset())
    assert coverage.keys == {"layer.a": 1.0, "layer.b": 0.5, "seed.a": 0.0}
    assert coverage.types == {"node.layer": 0.75, "node.seed": 0.0}
    assert coverage.average == pytest.approx(0.5)
    assert coverage.mandatory == pytest.approx(0.5)


def test_families_of_domain_6_4_are_all_there():
    coverage = coverage_of(sample_blueprint(), sample_packet(sample_blueprint()), sample_seed())
    assert set(coverage.types) == {
        "node.layer", "node.seed", "node.activation", "node.parameter", "node.blueprint", "node.global",
        "edges.layer_connects", "edges.seed_monitors", "edges.layer_feeds", "edges.activation_influences",
        "edges.parameter_tunes", "edges.activation_configures", "edges.parameter_modulates",
        "edges.parameter_targets", "edges.seed_param_allowed", "edges.global_influences", "edges.global_operates",
    }  # fmt: skip


@pytest.mark.parametrize(("group", "name"), COLUMNS)
def test_withheld_column_lowers_coverage_to_zero_for_its_key(group, name):
    blueprint = sample_blueprint()
    packet = sample_packet(blueprint)
    complete = coverage_of(blueprint, packet, sample_seed())
    columns = msgspec.structs.replace(getattr(packet, group), **{name: None})
    withheld = coverage_of(blueprint, msgspec.structs.replace(packet, **{group: columns}), sample_seed())
    fallen = {key for key, share in complete.keys.items() if withheld.keys[key] != share}
    assert fallen
    assert all(withheld.keys[key] == 0.0 and complete.keys[key] == 1.0 for key in fallen)
    assert withheld.average < complete.average


def test_half_a_column_counts_half():
    blueprint = sample_blueprint(4)
    columns = LayerTelemetry(weight_norm=[1.0, math.nan, 0.0, math.nan])
    coverage = coverage_of(blueprint, sample_packet(blueprint, layers=columns))
    assert coverage.keys["layer.weight_norm"] == 0.5


def test_defaults_and_invented_edges_never_count():
    blueprint = sample_blueprint(adjacency=None)
    coverage = coverage_of(blueprint, sample_packet(layers=None), sample_seed(monitored_layers=None))
    assert coverage.types["edges.layer_connects"] == 0.0
    assert coverage.keys["edges.seed_monitors.monitoring_frequency"] == 0.0
    assert coverage.types["edges.layer_feeds"] == 0.0
    assert coverage.types["edges.parameter_tunes"] == 0.0


def test_an_export_without_seeds_says_that_there_are_none_and_nothing_is_missing():
    coverage = coverage_of(sample_blueprint(), sample_packet(sample_blueprint(), seed_states=[]))
    assert not [key for key in coverage.keys if key.startswith("seed.")]
    assert "edges.seed_monitors" not in coverage.types


@pytest.mark.parametrize(
    ("seeds", "kernels", "families"),
    [
        ((), 2, {"node.seed", "edges.seed_monitors", "edges.seed_param_allowed", "edges.global_operates"}),
        ((sample_seed(),), 0, {"node.blueprint", "edges.parameter_targets"}),
    ],
    ids=["no seed export", "no kernel catalogue"],
)
def test_a_service_that_never_spoke_is_missing(seeds, kernels, families):
    blueprint = sample_blueprint()
    complete = coverage_of(blueprint, sample_packet(blueprint), sample_seed())
    coverage = coverage_of(blueprint, sample_packet(blueprint), *seeds, kernels=kernels)
    fallen = {family for family, share in coverage.types.items() if share == 0.0 < complete.types[family]}
    assert fallen == families - {"edges.global_operates"}  # in the samples nothing is known of these edges anyway
    assert families <= coverage.types.keys()
    assert coverage.mandatory < complete.mandatory


def test_blueprint_that_has_not_arrived_counts_as_missing():
    coverage = coverage_of(None, sample_packet())
    assert coverage.types["node.layer"] == coverage.types["node.parameter"] == 0.0
    assert coverage.types["edges.layer_connects"] == 0.0
    assert coverage.mandatory < 0.2


def test_layer_that_says_it_has_no_activation_is_covered():
    coverage = coverage_of(sample_blueprint(), sample_packet(sample_blueprint()))
    assert coverage.keys["layer.activation_type"] == 1.0
