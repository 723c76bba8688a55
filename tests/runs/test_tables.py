"""Blueprint and safety tables: the newest wins, and the tables stay bounded."""

from __future__ import annotations

from schemas.enums import BlueprintKind
from schemas.simic import PolicyUpdate
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint, BlueprintDescriptor
from tamiyo_stream.runs.tables import MAX_HOSTS, Tables


def blueprint(name: str, issued_at: int, kind: BlueprintKind = BlueprintKind.HOST, **fields) -> Blueprint:
    return Blueprint(blueprint_id=name, blueprint_version=str(issued_at), issued_at=issued_at, kind=kind, **fields)


def test_a_newer_blueprint_replaces_and_an_older_one_is_left_out() -> None:
    tables = Tables()
    assert tables.add_blueprint(blueprint("m", 2))
    assert not tables.add_blueprint(blueprint("m", 1))
    assert tables.hosts["m"].blueprint_version == "2"


def test_hosts_and_kernels_are_kept_apart() -> None:
    tables = Tables()
    tables.add_blueprint(blueprint("m", 1))
    tables.add_blueprint(blueprint("k", 1, BlueprintKind.KERNEL))
    assert (list(tables.hosts), list(tables.kernels)) == (["m"], ["k"])


def test_a_sheets_risk_overrides_the_descriptors() -> None:
    tables = Tables()
    tables.add_blueprint(blueprint("k", 1, BlueprintKind.KERNEL, descriptor=BlueprintDescriptor(risk=0.2)))
    assert tables.risk_of("k") == 0.2
    tables.add_sheet(BlueprintSafetySheet(blueprint_id="k", risk_score=0.9, issued_at=1))
    assert tables.risk_of("k") == 0.9
    assert tables.risk_of("unknown") is None


def test_a_failed_evaluation_is_kept_until_a_sheet_arrives() -> None:
    tables = Tables()
    tables.add_failure(BlueprintSafetyFailed(blueprint_id="k", reason="oom", issued_at=1))
    assert tables.failures == {"k": "oom"}
    tables.add_sheet(BlueprintSafetySheet(blueprint_id="k", issued_at=2))
    assert tables.failures == {}


def test_the_oldest_host_leaves_when_the_table_is_full() -> None:
    tables = Tables()
    for number in range(MAX_HOSTS + 1):
        tables.add_blueprint(blueprint(f"m{number}", 1))
    assert len(tables.hosts) == MAX_HOSTS
    assert "m0" not in tables.hosts


def test_a_failure_older_than_the_sheet_is_history() -> None:
    tables = Tables()
    tables.add_sheet(BlueprintSafetySheet(blueprint_id="k", issued_at=2))
    assert not tables.add_failure(BlueprintSafetyFailed(blueprint_id="k", reason="oom", issued_at=1))
    assert tables.failures == {}


def test_blueprints_without_a_sheet_are_named_once_and_in_order() -> None:
    tables = Tables()
    tables.add_sheet(BlueprintSafetySheet(blueprint_id="b", issued_at=1))
    assert tables.unsheeted(["c", "b", "a", "c"]) == ("c", "a")


def test_the_newest_policy_update_is_kept() -> None:
    tables = Tables()
    for policy_id, issued_at, kept in (("p1", 1, True), ("p3", 3, True), ("p2", 2, False)):
        update = PolicyUpdate(
            policy_id=policy_id,
            issued_at=issued_at,
            tamiyo_policy_version="tamiyo_gnn_v1",
            sha256="0" * 64,
            size_bytes=1,
            uri="file:///p",
        )
        assert tables.add_policy_update(update) is kept
    assert tables.policy_update is not None
    assert tables.policy_update.policy_id == "p3"
