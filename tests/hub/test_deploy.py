"""Dashboards and alert rules use only what a worker exposes, by the labels it has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.hub.scrape import full_scrape, samples_of

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
#: Added by Prometheus itself.
PROMETHEUS_LABELS = {"instance", "job", "le", "__name__"}
PROMETHEUS_METRICS = {"up"}
_SELECTOR = re.compile(r"\b((?:tamiyo|messaging)_[a-z0-9_]+|up)\b(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")


@cache
def exposed() -> dict[str, set[str]]:
    return samples_of(full_scrape())


def alerts() -> list[dict]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["panels"]


def expressions() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in panels(path):
            yield from ((f"{path.stem}: {panel['title']}", target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in alerts())


def unknown(expression: str) -> set[str]:
    """Return the metrics and labels of ``expression`` that no worker exposes."""
    found, used = set(), list[str]()
    for metric, matchers in _SELECTOR.findall(_GROUPING.sub("", expression)):
        if metric in PROMETHEUS_METRICS:
            continue
        used.append(metric)
        labels = exposed().get(metric, set()) | PROMETHEUS_LABELS
        found |= {metric} - exposed().keys()
        found |= {f"{metric}{{{label}}}" for label in re.findall(r"(\w+)\s*[=!]~?", matchers)} - {
            f"{metric}{{{label}}}" for label in labels
        }
    known = PROMETHEUS_LABELS.union(*(exposed().get(metric, set()) for metric in used))
    for group in _GROUPING.findall(expression):
        found |= {label.strip() for label in group.split(",")} - known
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: value[:60])
def test_every_metric_and_label_in_use_is_exposed(where: str, expression: str) -> None:
    assert unknown(expression) == set(), where


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sum(tamiyo_nothing)", {"tamiyo_nothing"}),
        ('tamiyo_live{colour="red"}', {"tamiyo_live{colour}"}),
        ("sum by (colour) (tamiyo_live)", {"colour"}),
        ("max by (instance) (tamiyo_live)", set()),
    ],
)
def test_what_is_not_exposed_is_found(expression: str, expected: set[str]) -> None:
    assert unknown(expression) == expected


def test_every_dashboard_has_a_name_of_its_own_and_its_panels_say_what_they_show() -> None:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert len({one["uid"] for one in found}) == len(found) == 4
    for one in found:
        assert all(panel["description"] and panel["targets"] for panel in one["panels"])
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in one["panels"]]
        assert len(set(places)) == len(places)


def test_panels_use_the_datasource_that_is_provisioned() -> None:
    provisioned = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text(
        encoding="utf-8"
    )
    (source,) = yaml.safe_load(provisioned)["datasources"]
    used = {panel["datasource"]["uid"] for path in DASHBOARDS for panel in panels(path)}
    assert used == {source["uid"]}


def test_every_alert_has_a_runbook() -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    entries = {line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")}
    assert entries == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_nissas_alerts_are_there() -> None:
    assert {
        "tamiyo_coverage_low",
        "tamiyo_bsds_critical",
        "tamiyo_bsds_high",
        "tamiyo_bsds_elevated_risk",
        "training_latency_high",
        "kasmina_isolation_violation",
        "oona_queue_depth",
    } <= {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_takes_the_rules_and_they_fire_as_said(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
