"""What is kept between steps: within its number and size, and long enough for many runs in turn."""

from __future__ import annotations

import numpy as np

from tamiyo_stream.graph.builder import GraphBuilder
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.template import MAX_PROGRAMS
from tests.graph.samples import sample_blueprint, sample_packet, sample_run, sample_seed, sample_tables

BLUEPRINT = sample_blueprint()
TABLES = sample_tables(BLUEPRINT)
PACKET = sample_packet(BLUEPRINT)


def built(builder, name):
    return builder.build(sample_run(sample_seed(), run_id=name), PACKET, TABLES)


def test_a_hundred_runs_in_turn_keep_their_structures():
    builder = GraphBuilder(Registries())
    names = [f"run-{index}" for index in range(100)]
    first = [built(builder, name).topology for name in names]
    assert all(built(builder, name).topology is known for name, known in zip(names, first, strict=True))


def test_the_number_of_runs_is_bounded_and_the_newest_stay():
    builder = GraphBuilder(Registries(), max_cached=2)
    first = {name: built(builder, name).topology for name in ("a", "b", "c")}
    assert len(builder._runs) == 2
    assert built(builder, "c").topology is first["c"]
    assert built(builder, "b").topology is first["b"]
    assert built(builder, "a").topology is not first["a"]


def test_the_bytes_of_all_runs_are_bounded_and_the_oldest_leave():
    one = GraphBuilder(Registries())
    built(one, "a")
    builder = GraphBuilder(Registries(), max_cached_bytes=3 * one._runs.nbytes)
    for name in "abcdef":
        built(builder, name)
    assert len(builder._runs) == 3
    assert builder._runs.nbytes == 3 * one._runs.nbytes


def test_a_run_over_the_byte_limit_is_kept_alone():
    builder = GraphBuilder(Registries(), max_cached_bytes=1)
    topology = built(builder, "large").topology
    assert built(builder, "large").topology is topology
    built(builder, "next")
    assert len(builder._runs) == 1


def test_forgotten_runs_leave_no_bytes_behind():
    builder = GraphBuilder(Registries())
    for name in "abc":
        built(builder, name)
    for name in "abc":
        builder.forget(name)
    builder.forget("never seen")
    assert (len(builder._runs), builder._runs.nbytes) == (0, 0)


def test_buffers_count_once_they_are_held():
    builder = GraphBuilder(Registries())
    held = [built(builder, "a")]
    before = builder._runs.nbytes
    held.append(built(builder, "a"))
    graph = held[0]
    arrays = sum(array.nbytes for array in (*graph.x_dict.values(), *graph.edge_attr_dict.values()))
    assert builder._runs.nbytes - before == arrays


def test_programs_of_one_structure_are_bounded():
    builder = GraphBuilder(Registries())
    run = sample_run()
    names = sorted(PACKET.training_metrics)
    for choice in range(2 ** len(names) // 2):
        metrics = {name: 1.0 for bit, name in enumerate(names) if choice >> bit & 1}
        graph = builder.build(run, sample_packet(BLUEPRINT, training_metrics=metrics), TABLES)
    assert len(builder._runs.take("run").template._programs) == MAX_PROGRAMS
    assert all(np.isfinite(x).all() for x in graph.x_dict.values())


def test_the_run_that_was_not_built_for_longest_leaves_first():
    builder = GraphBuilder(Registries(), max_cached=2)
    first = {name: built(builder, name).topology for name in ("a", "b")}
    built(builder, "a")
    built(builder, "c")
    assert built(builder, "a").topology is first["a"]
