"""What a graph says of the input it could not use, and of the nodes that rest on learned embeddings."""

from __future__ import annotations

import msgspec
import pytest

from schemas.tolaria import ActivationTelemetry, ParameterTelemetry
from schemas.urza import BlueprintActivations, BlueprintLayers, Capabilities
from tamiyo_stream.graph import seed_edges, topology
from tamiyo_stream.graph.builder import MAX_PROBLEM_LENGTH, MAX_PROBLEMS, GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tests.graph.samples import (
    sample_blueprint,
    sample_kernel,
    sample_packet,
    sample_run,
    sample_seed,
    sample_tables,
    telemetry,
)


def built(blueprint, *seeds, packet=None, tables=None):
    packet = packet or sample_packet(blueprint)
    tables = tables or sample_tables(blueprint)
    return GraphBuilder(Registries()).build(sample_run(*seeds), packet, tables)


def problems(*args, **kwargs):
    return built(*args, **kwargs).problems


@pytest.mark.parametrize(
    ("section", "record"), [("activations", ActivationTelemetry), ("parameters", ParameterTelemetry)]
)
def test_columns_of_a_section_that_the_blueprint_lacks_name_blueprint_and_section(section, record):
    whole = sample_blueprint(4, adjacency=None)
    blueprint = msgspec.structs.replace(whole, graph=msgspec.structs.replace(whole.graph, **{section: None}))
    packet = sample_packet(blueprint, **{section: telemetry(record, 2)})
    text = f"state.{section}: blueprint 'host' version 'v1' lists no {section}; its columns were left out"
    assert problems(blueprint, packet=packet) == (text,)


def test_columns_without_a_known_blueprint_say_so():
    packet = sample_packet(sample_blueprint(), activations=None, parameters=None)
    assert problems(None, packet=packet) == (
        "blueprint: 'host' has not arrived",
        "state.layers: the blueprint that its elements belong to is not known; its columns were left out",
    )


def test_columns_of_another_version_name_both_versions():
    blueprint = sample_blueprint()
    packet = sample_packet(blueprint, blueprint_version="v0", activations=None, parameters=None)
    assert problems(blueprint, packet=packet) == (
        "state.layers: it belongs to blueprint version 'v0', known is 'v1'; its columns were left out",
    )


def test_parameters_that_the_blueprint_lacks_are_counted_over_all_seeds():
    seeds = (
        sample_seed("a", allowed_parameters=["group0", "gone", "lost"]),
        sample_seed("b", allowed_parameters=["gone"]),
    )
    assert problems(sample_blueprint(), *seeds) == (
        "allowed: 3 parameters are not in the blueprint and were dropped",
    )


@pytest.mark.parametrize(
    "listed",
    [
        {"allowed_parameters_by_seed_id": {"seed0": ["group0", "gone"]}},
        {"allowed_parameters_by_seed_index": {"0": [0, 9]}},
    ],
)
def test_parameters_that_the_blueprints_own_lists_name_in_vain_are_counted(listed):
    blueprint = sample_blueprint(capabilities=Capabilities(**listed))
    graph = built(blueprint, sample_seed(allowed_parameters=None))
    assert graph.problems == ("allowed: 1 parameters are not in the blueprint and were dropped",)
    assert graph.topology.edges["seed", "allowed", "parameter"].target.tolist() == [0]


def test_implied_permissions_over_the_bound_are_named(monkeypatch):
    monkeypatch.setattr(seed_edges, "MAX_IMPLIED_EDGES", 4)
    seeds = [sample_seed(f"seed{i}", allowed_parameters=None, blend_allowed=True) for i in range(2)]
    blueprint = sample_blueprint(parameters=5)
    (text,) = problems(blueprint, *seeds, tables=sample_tables(blueprint, kernels=0))
    assert text == (
        "allowed: 3 of 5 parameters were left out for each seed that may touch all, "
        "so as not to imply more than 4 edges"
    )
    listing = [msgspec.structs.replace(seed, allowed_parameters=["group0"]) for seed in seeds]
    assert problems(blueprint, *listing, tables=sample_tables(blueprint, kernels=0)) == ()


def test_implied_targets_over_the_bound_are_named(monkeypatch):
    monkeypatch.setattr(seed_edges, "MAX_IMPLIED_EDGES", 4)
    monkeypatch.setattr(topology, "MAX_IMPLIED_EDGES", 4)
    blueprint = sample_blueprint(parameters=5)
    graph = built(blueprint)
    (text,) = graph.problems
    assert text == (
        "targets: 3 of 5 parameters were left out for each kernel that names none of them, "
        "so as not to imply more than 4 edges"
    )
    assert len(graph.topology.edges["parameter", "targets", "blueprint"]) == 4


def test_problems_are_bounded_in_length():
    graph = built(None, packet=sample_packet(blueprint_id="x" * 10_000))
    assert [len(text) for text in graph.problems] == [MAX_PROBLEM_LENGTH]
    assert graph.problems[0].endswith("x…")


def test_problems_are_bounded_in_number(monkeypatch):
    def many(*args):
        return {}, [f"problem {number}" for number in range(MAX_PROBLEMS + 5)]

    monkeypatch.setattr("tamiyo_stream.graph.builder.state_subject", many)
    found = problems(sample_blueprint())
    assert len(found) == MAX_PROBLEMS
    assert found[-2:] == (f"problem {MAX_PROBLEMS - 2}", "and 6 more")


def test_a_fully_described_run_rests_on_no_learned_fallback():
    assert built(sample_blueprint(), sample_seed(), sample_seed("bare", blueprint_id=None)).learned_fallbacks == 0


def test_a_host_that_has_not_arrived_is_one_learned_fallback():
    assert built(None, sample_seed(), packet=sample_packet()).learned_fallbacks == 1
    nothing = sample_tables(None, kernels=0)
    assert built(None, sample_seed(), packet=sample_packet(), tables=nothing).learned_fallbacks == 2


def test_each_seed_with_an_unknown_kernel_is_a_learned_fallback_until_the_kernel_arrives():
    blueprint = sample_blueprint()
    builder, tables = GraphBuilder(Registries()), sample_tables(blueprint, kernels=1)
    run = sample_run(*(sample_seed(name, blueprint_id=name) for name in ("kernel-a", "kernel-y", "kernel-z")))
    counts = []
    for name in ("", "kernel-y", "kernel-z"):
        if name:
            tables.add_blueprint(sample_kernel(name))
        counts.append(builder.build(run, sample_packet(blueprint), tables).learned_fallbacks)
    assert counts == [2, 1, 0]


def test_each_activation_without_a_known_function_is_a_learned_fallback():
    activations = BlueprintActivations(activation_id=["a", "b", "c"], type=["", "relu", ""])
    blueprint = sample_blueprint(4, activations=activations, adjacency=None)
    assert built(blueprint).learned_fallbacks == 2
    layers = BlueprintLayers(layer_id=["a", "b"], type=["linear", "conv2d"], activation_type=None)
    assert (
        built(sample_blueprint(2, layer_columns=layers, activations=None, adjacency=None)).learned_fallbacks == 2
    )
