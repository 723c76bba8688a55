"""Which layers a seed watches and which parameters it may touch (domain.md §4.9)."""

from __future__ import annotations

import pytest

from schemas.enums import SeedLifecycleStage
from schemas.kasmina import MonitoredLayer
from schemas.urza import Capabilities, Monitors, MonitorThresholds
from tamiyo_stream.graph.seed_edges import MAX_IMPLIED_EDGES, allowed_links, monitor_links
from tests.graph.samples import sample_graph, sample_seed


def watched(graph, *seeds, top_layers=()):
    links, _ = monitor_links(graph, seeds, top_layers)
    return list(zip(links.source.tolist(), links.target.tolist(), strict=True))


def allowed(graph, seed):
    return allowed_links(graph, (seed,)).target.tolist()


UNBOUND = {"monitored_layers": None}
BY_ID = Monitors(by_seed_id={"seed0": [2]}, by_seed_index={"0": [4]})


def test_own_list_comes_before_the_blueprints():
    assert watched(sample_graph(monitors=BY_ID), sample_seed()) == [(0, 1)]


def test_blueprints_binding_goes_by_id_then_by_position():
    graph = sample_graph(monitors=Monitors(by_seed_id={"seed0": [2]}, by_seed_index={"0": [4], "1": [5]}))
    assert watched(graph, sample_seed("seed0", **UNBOUND), sample_seed("other", **UNBOUND)) == [(0, 2), (1, 5)]


def test_explicitly_empty_list_watches_nothing():
    assert watched(sample_graph(), sample_seed(monitored_layers=[]), top_layers=(1, 2)) == []


def test_unknown_layers_are_dropped_and_counted():
    layers = [MonitoredLayer(layer_id=name) for name in ("layer0", "gone", "layer2")]
    links, dropped = monitor_links(sample_graph(), (sample_seed(monitored_layers=layers),))
    assert links.target.tolist() == [0, 2]
    assert links.origin.tolist() == [0, 2]
    assert dropped == 1


def test_unbound_seed_watches_the_three_top_layers():
    assert watched(sample_graph(), sample_seed(**UNBOUND), top_layers=(4, 0, 2, 1)) == [(0, 4), (0, 0), (0, 2)]


def test_before_any_loss_contribution_is_known_the_deepest_layers_stand_in():
    assert watched(sample_graph(6), sample_seed(**UNBOUND)) == [(0, 5), (0, 4), (0, 3)]


@pytest.mark.parametrize(
    ("changes", "edges"),
    [
        ({"risk_score": 0.51}, []),
        ({"risk_score": 0.5}, [(0, 1)]),
        ({"risk_score": None}, [(0, 1)]),
        ({"stage": SeedLifecycleStage.DORMANT}, []),
    ],
)
def test_thresholds_take_monitor_edges_away(changes, edges):
    thresholds = MonitorThresholds(risk_max=0.5, stage_min=0.2)
    assert watched(sample_graph(monitors=Monitors(thresholds=thresholds)), sample_seed(**changes)) == edges


GLOBAL = Capabilities(allowed_blending_methods=["linear"])
LISTED = Capabilities(
    allowed_parameters_by_seed_id={"seed0": ["group1"]}, allowed_parameters_by_seed_index={"0": [0]}
)
INDEXED = Capabilities(allowed_parameters_by_seed_index={"0": [1, 9]})
EMPTY = Capabilities(allowed_parameters_by_seed_id={"seed0": []}, allowed_blending_methods=["linear"])
OPEN = {"allowed_parameters": None}


@pytest.mark.parametrize(
    ("capabilities", "changes", "parameters"),
    [
        (LISTED, {}, [0]),  # the seed's own list is group0
        (LISTED, {"allowed_parameters": []}, []),
        (LISTED, {"allowed_parameters": ["gone"]}, []),
        (LISTED, OPEN, [1]),
        (INDEXED, OPEN, [1]),
        (EMPTY, OPEN, []),
        (None, {**OPEN, "blend_allowed": True}, [0, 1]),
        (GLOBAL, {**OPEN, "blend_allowed": False}, []),
        (None, {**OPEN, "blend_allowed": None, "stage": SeedLifecycleStage.SHADOWING}, [0, 1]),
        (None, {**OPEN, "blend_allowed": None, "stage": SeedLifecycleStage.CULLED}, []),
        (GLOBAL, {**OPEN, "blend_allowed": None, "stage": SeedLifecycleStage.DORMANT}, [0, 1]),
        (
            Capabilities(allowed_blending_methods=[]),
            {**OPEN, "blend_allowed": None, "stage": SeedLifecycleStage.DORMANT},
            [],
        ),
    ],
)
def test_allow_lists_have_their_priority(capabilities, changes, parameters):
    assert allowed(sample_graph(capabilities=capabilities), sample_seed(**changes)) == parameters


def test_host_without_parameters_allows_none():
    assert allowed(sample_graph(parameters=0), sample_seed()) == []


def test_blueprint_that_binds_a_seed_to_nothing_is_obeyed():
    graph = sample_graph(monitors=Monitors(by_seed_id={"seed0": []}, by_seed_index={"0": [4]}))
    assert watched(graph, sample_seed(**UNBOUND), top_layers=(1, 2)) == []


def test_blanket_permission_of_many_seeds_stays_within_the_bound():
    seeds = [sample_seed(f"seed{index}", allowed_parameters=None, blend_allowed=True) for index in range(1000)]
    links = allowed_links(sample_graph(parameters=1000), seeds)
    assert len(links) == MAX_IMPLIED_EDGES
    assert set(links.source.tolist()) == set(range(1000))
