"""A worker killed at a chosen point of its work: its successor loses and doubles nothing, and reads its files."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest

from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.runs.norms_file import read_norms
from tests.chaos import upstream
from tests.chaos.fault_points import POINTS, STRUCK
from tests.chaos.rig import Rig

SETTINGS = {"TAMIYO_FLUSH_INTERVAL_S": "0.05", "TAMIYO_LEASE_TTL_MS": "500", "TAMIYO_MIN_IDLE_MS": "200"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("points")) as rig:
        yield rig


@pytest.mark.parametrize("point", POINTS)
def test_the_successor_of_a_worker_killed_there_loses_and_doubles_nothing(rig, point) -> None:
    rig.begin(workers=0)
    plan = rig.plan(7, runs=2, steps=40, rate=100.0, poison=0.1)
    publisher = Thread(target=upstream.publish, args=(rig.url(), plan))
    publisher.start()
    killed = rig.nursery.start(fault=point, **SETTINGS)
    rig.until(lambda: not killed.alive(), f"the worker comes to the point {point}")
    assert rig.nursery.log_of(killed).splitlines()[-1] == f"{STRUCK} {point}"
    directory = rig.var_dir(killed)
    left_behind = read_norms(directory / "gnn_norms.json")  # raises where the file is damaged
    if point == "norms_written":
        assert left_behind

    publisher.join()
    rig.nursery.start(TAMIYO_VAR_DIR=str(directory), **SETTINGS)
    ledger = rig.settle()
    assert not ledger.lost
    assert not ledger.doubled
    assert set(ledger.letters.values()) == {1}
    assert ledger.decided + len(ledger.refused) > 0
    assert not rig.differing_runs()
    rig.until(lambda: set(plan.run_ids) <= read_norms(directory / "gnn_norms.json").keys(), "the norms are saved")
    Registries(directory / "registries")  # raises where a file is damaged
