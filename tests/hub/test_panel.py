"""What the panel holds and shows of runs, decisions and the last minutes."""

from __future__ import annotations

import json

import msgspec
import numpy as np

from schemas.enums import HealthStatus, SeedLifecycleStage
from schemas.kasmina import SeedState
from schemas.record import Float32Column
from tamiyo_stream.hub.hub_state import FeedReading, HubState, ModelInUse
from tamiyo_stream.hub.panel_state import PanelLimits, PanelState
from tamiyo_stream.hub.panel_view import decision_document, history_document, picture_document, state_document
from tests.hub.samples import NOW, SECOND, blueprint, command, health, packet, point, seed


def step(number: int = 0, latency: float = 20.0, run_id: str = "run", **figures: float):
    points = [point("tamiyo.decision.latency_ms", latency), point("tamiyo.decision.budget_ms", 45.0)]
    points += [point(f"tamiyo.{name.replace('__', '.')}", value) for name, value in figures.items()]
    return packet(*points, source="tamiyo", run_id=run_id, system_health=health(HealthStatus.HEALTHY, "policy"))


def run_of(state: HubState, now: int = NOW):
    (run,) = state_document(state, now)["runs"]
    return run


def test_a_run_shows_its_newest_step() -> None:
    state = HubState()
    state.step(command(7), step(training_loss=2.5, policy__risk_score=0.4), NOW)
    run = run_of(state, NOW + SECOND)
    assert (run["id"], run["step"], run["loss"], run["risk"], run["age_ms"]) == ("run", 7, 2.5, 0.4, 1000)
    assert run["health"] == {"status": "HEALTHY", "summary": "policy"}


def test_what_is_not_known_is_shown_as_not_known() -> None:
    state = HubState()
    state.step(command(), step(), NOW)
    run = run_of(state)
    assert [run[name] for name in ("loss", "risk", "conservative", "heat", "picture")] == [None] * 5
    assert state_document(state, NOW)["model"] is None


def test_latency_is_shown_against_its_budget() -> None:
    state = HubState()
    for number in range(100):
        state.step(command(number), step(latency=50.0 if number < 10 else 20.0), NOW)
    latency = run_of(state)["latency"]
    assert (latency["last"], latency["p50"], latency["p95"], latency["budget"], latency["late"]) == (
        20.0,
        20.0,
        50.0,
        45.0,
        10,
    )


def test_the_history_has_one_bin_a_second_and_forgets() -> None:
    panel = PanelState(PanelLimits(history_s=3))
    for second, (latency, loss) in enumerate([(9.0, 1.0), (10.0, 2.0), (30.0, 4.0), (20.0, 6.0)]):
        moment = NOW + (second // 2) * SECOND
        panel.step(command(second), step(latency=latency, training_loss=loss), moment)
    rows = history_document(list(panel.runs()[0].history))
    first = NOW // SECOND
    assert [row[:4] for row in rows] == [[first, 2, 1.5, 10.0], [first + 1, 2, 5.0, 30.0]]
    panel.step(command(9), step(), NOW + 3 * SECOND)
    assert [one.second for one in panel.runs()[0].history] == [first + 1, first + 3]


def test_telemetry_of_refusals_alone_leaves_the_last_step_shown() -> None:
    state = HubState()
    state.step(command(), step(training_loss=2.5), NOW)
    state.panel.packet(packet(source="tamiyo"), NOW)
    assert run_of(state)["loss"] == 2.5


def test_a_decision_is_shown_with_its_why() -> None:
    panel = PanelState()
    why = {"layers": {"a": 0.5}, "rules": [{"rule": "loss_spike"}]}
    given = {
        "why": json.dumps(why),
        "policy_risk_score": "0.25",
        "decision_latency_ms": "12.5",
        "risk_reason": "loss_spike",
    }
    panel.step(command(3, **given), step(), NOW)
    (shown,) = panel.decisions_after(0)
    document = decision_document(shown)
    assert document["why"] == why
    assert (document["step"], document["action"], document["reason"]) == (3, "hold", "loss_spike")
    assert (document["risk"], document["latency_ms"]) == (0.25, 12.5)


def test_a_command_whose_annotations_cannot_be_read_is_shown_without_them() -> None:
    panel = PanelState()
    panel.step(command(why="{", policy_risk_score="high"), step(), NOW)
    document = decision_document(next(panel.decisions_after(0)))
    assert (document["why"], document["risk"]) == ({}, None)


def test_decisions_are_numbered_and_bounded() -> None:
    panel = PanelState(PanelLimits(decisions=3))
    for number in range(5):
        panel.step(command(number), step(), NOW)
    assert [shown.number for shown in panel.decisions_after(0)] == [5, 4, 3]
    assert [shown.number for shown in panel.decisions_after(4)] == [5]


def test_the_run_longest_silent_leaves() -> None:
    panel = PanelState(PanelLimits(runs=2, keep_s=10))
    for number, run_id in enumerate("abac"):
        panel.step(command(run_id=run_id), step(run_id=run_id), NOW + number * SECOND)
    assert [run.run_id for run in panel.runs()] == ["a", "c"]
    panel.drop_silent(NOW + 13 * SECOND)
    assert [run.run_id for run in panel.runs()] == ["c"]


def test_seeds_heat_and_attention_are_placed_on_the_picture() -> None:
    state = HubState()
    state.step(command(why=json.dumps({"layers": {"b": 0.5}})), step(), NOW)
    state.panel.model("run", blueprint(["a", "b"]), NOW)
    state.panel.seeds(
        "run", [seed("s", "b"), SeedState(seed_id="t", stage=SeedLifecycleStage.BLENDING, alpha=0.5)], NOW
    )
    state.panel.layers("run", Float32Column.of([0.5, np.nan]), NOW)
    run = run_of(state)
    assert [(one["id"], one["stage"], one["alpha"], one["cells"]) for one in run["seeds"]] == [
        ("s", "UNKNOWN", None, [1]),
        ("t", "BLENDING", 0.5, []),
    ]
    assert run["heat"] == [0.5, None]
    assert run["attention"] == {"1": 0.5}


def test_a_picture_is_drawn_anew_for_a_new_version_only() -> None:
    panel = PanelState()
    panel.model("run", blueprint(["a"]), NOW)
    first = panel.runs()[0].picture()
    assert panel.runs()[0].picture() is first
    panel.model("run", blueprint(["a", "b"], version="v2"), NOW)
    second = panel.runs()[0].picture()
    assert picture_document("run", second)["layers"] == 2


def test_feeds_model_and_health_are_shown() -> None:
    state = HubState(worker_id="w")
    state.read_feeds([FeedReading("oona.tolaria.state", lag=3, newest_ns=NOW - SECOND, partition=2)], NOW)
    state.model = ModelInUse("v1", digest="abc", device="cpu", compiled=False, compile_reason="device_not_cuda")
    state.progress.started = True
    state.progress.waits_for("lease", "held")
    document = state_document(state, NOW)
    assert document["feeds"] == [
        {"name": "oona.tolaria.state.2", "lag": 3, "pending": None, "length": None, "age_ms": 1000}
    ]
    assert document["model"]["compile_reason"] == "device_not_cuda"
    assert document["ready"] == {"ok": False, "reasons": ("lease: held",)}
    assert document["live"]["ok"]


def test_what_tolaria_and_kasmina_report_is_shown_beside_the_run() -> None:
    state = HubState()
    state.step(command(), step(), NOW)
    state.aggregator.ingest(packet(point("training.latency_s", 0.018, "s")), NOW)
    run = run_of(state)
    assert run["upstream"] == [{"name": "tolaria.training.latency_ms", "value": 18.0}]
    assert {one["source"] for one in run["sources"]} == {"tamiyo", "tolaria"}


def test_every_document_is_json() -> None:
    state = HubState()
    state.step(command(), step(training_loss=float("nan")), NOW)
    json.loads(msgspec.json.encode(state_document(state, NOW)))
