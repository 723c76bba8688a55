"""The demonstration on a real training run, with a real Redis and the worker as its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.upstream.waiting import wait_until


def demo_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tamiyo_stream", "demo", *arguments]


def children_of(parent: int) -> dict[int, str]:
    """Return the living child processes of ``parent``: id -> name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, name, state, owner, *_ = stat.read_text().replace("(", "").replace(")", "").split()
        except OSError:  # it ended while we looked
            continue
        if owner == str(parent) and state != "Z":
            found[int(number)] = name
    return found


def is_alive(number: int) -> bool:
    return Path(f"/proc/{number}").exists()


@pytest.mark.timeout(240)
def test_every_published_step_is_answered_exactly_once(tmp_path) -> None:
    target = tmp_path / "out.json"
    done = subprocess.run(
        demo_command("--steps", "90", "--headless", "--json", str(target)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(target.read_text())
    assert report["steps_published"] == 90
    assert report["missing"] == report["duplicates"] == 0
    assert report["decided"] + report["superseded"] == 90
    assert report["decisions_received"] == report["decided"] == sum(report["commands_by_type"].values())
    assert report["layers"] > 20
    assert report["edges"] >= report["layers"] - 1
    assert 0 < report["feature_coverage"] <= 1
    assert report["mandatory_coverage"] == 1.0
    assert report["incomplete_features"] == {}
    assert report["kernels"] >= 12
    assert report["safety_sheets"] == report["kernels"] + 1  # the host has one too
    assert len(report["seeds"]) == 4
    assert report["commands_applied"] + sum(report["commands_refused"].values()) == report["decided"]
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"]
    assert report["final_loss"] < report["initial_loss"]
    assert report["worker_exit_status"] == 0
    assert "90" in done.stdout


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("service", "missing"),
    [
        ("kasmina", {"seed.alpha", "edges.seed_monitors.monitoring_frequency"}),
        ("urabrask", {"layer.bsds_risk_score", "blueprint.hazard_band", "parameter.cooldown"}),
        ("urza", {"blueprint.tier", "edges.parameter_targets.target"}),
    ],
)
def test_a_service_that_is_left_out_is_missed_and_every_step_is_decided(tmp_path, service, missing) -> None:
    target = tmp_path / "out.json"
    arguments = ("--steps", "15", "--headless", "--without", service, "--json", str(target))
    done = subprocess.run(demo_command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(target.read_text())
    assert report["mandatory_coverage"] < 1.0
    assert missing <= report["incomplete_features"].keys()
    assert report["decided"] + report["superseded"] == 15
    assert report["missing"] == report["duplicates"] == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_leaves_no_process_behind(tmp_path, number) -> None:
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(demo_command("--steps", "100000", "--headless"), stdout=sink, stderr=sink)
    try:
        wait_until(lambda: "step 1/" in log.read_text(), "the run has begun", timeout_s=90)
        children = children_of(process.pid)
        assert {"redis-server", "python"} <= set(children.values())
        process.send_signal(number)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert [child for child in children if is_alive(child)] == []
    assert "Traceback" not in log.read_text()


def test_a_report_that_cannot_be_written_stops_the_demo_before_it_starts(tmp_path) -> None:
    target = tmp_path / "missing" / "out.json"
    done = subprocess.run(
        demo_command("--headless", "--json", str(target)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot run" in done.stdout
    assert "out.json" in done.stdout.replace("\n", "")
    assert "starting" not in done.stdout


@pytest.mark.timeout(120)
def test_a_redis_that_dies_is_said_and_nothing_is_left_behind(tmp_path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(demo_command("--steps", "60", "--headless"), stdout=sink, stderr=sink)
    try:
        wait_until(lambda: "step 1/" in log.read_text(), "the run has begun", timeout_s=90)
        children = children_of(process.pid)
        (server,) = (number for number, name in children.items() if name == "redis-server")
        os.kill(server, signal.SIGKILL)
        assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert "training goes on" in text
    assert "cannot run" in text
    assert "Traceback" not in text
    assert [child for child in children if is_alive(child)] == []
