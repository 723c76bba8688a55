"""Which mail a command answered is read from the command."""

from __future__ import annotations

from schemas.catalogue import Stream
from schemas.kasmina import SeedExport
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.replay.grouping import Step, group_steps
from tamiyo_stream.replay.recording import Verified
from tests.replay.conftest import answer, entry, verified


def state(step: int, at_ms: int, **kwargs):
    packet = SystemStatePacket(run_id="run", packet_id=f"run-{step}", global_step=step, timestamp_ns=step)
    return entry(Stream.STATE, at_ms, packet, **kwargs)


def seeds(exported_ns: int, at_ms: int):
    return entry(Stream.SEEDS, at_ms, SeedExport(run_id="run", timestamp_ns=exported_ns, seeds=[]))


def command(step: int, at_ms: int, **kwargs):
    return entry(Stream.COMMANDS, at_ms, answer(step, **kwargs))


def told(items: list[Verified]) -> list[str]:
    return [getattr(item.message, "packet_id", f"seeds {item.at_ms}") for item in items]


def mails(steps: list[Step]) -> list[list[str]]:
    return [told(step.mail) for step in steps]


def rule(signal: str, value: object, name: str = "") -> dict[str, object]:
    return {"rule": name or signal, "signal": signal, "value": value}


def test_superseded_packets_go_with_the_one_that_names_them() -> None:
    found = group_steps(
        verified(
            state(1, 100),
            state(2, 101),
            state(3, 102),
            state(4, 200),
            command(3, 110, claimed_ms=103, superseded=(1, 2)),
            command(4, 210, claimed_ms=201),
        )
    )
    assert mails(found.steps) == [["run-1", "run-2", "run-3"], ["run-4"]]
    assert (found.unanswered, found.unmatched) == ([], [])


def test_the_moments_are_those_of_the_command_to_the_microsecond() -> None:
    (step,) = group_steps(verified(state(1, 100), command(1, 110, claimed_ms=101, took_ms=4.321))).steps
    assert (step.claimed_ns, step.elapsed_us) == (101_000_000, 4321)


def test_a_seed_export_belongs_to_the_first_command_that_saw_it_whenever_it_arrived() -> None:
    found = group_steps(
        verified(
            seeds(7, 99),
            state(1, 100),
            seeds(8, 101),
            state(2, 200),
            command(1, 110, claimed_ms=101, seeds_as_of_ns="7"),
            command(2, 210, claimed_ms=201, seeds_as_of_ns="8"),
        )
    )
    assert mails(found.steps) == [["seeds 99", "run-1"], ["seeds 101", "run-2"]]


def test_seed_exports_of_one_time_are_told_apart_by_their_arrival() -> None:
    found = group_steps(
        verified(
            seeds(7, 99),
            state(1, 100),
            seeds(7, 150),
            state(2, 200),
            command(1, 110, claimed_ms=101, seeds_as_of_ns="7"),
            command(2, 210, claimed_ms=201, seeds_as_of_ns="7"),
        )
    )
    assert mails(found.steps) == [["seeds 99", "run-1"], ["seeds 150", "run-2"]]


def test_a_command_that_saw_no_export_gets_none() -> None:
    (step,) = group_steps(verified(seeds(7, 99), state(1, 100), command(1, 110, claimed_ms=101))).steps
    assert told(step.mail) == ["run-1"]


def test_refused_packets_are_in_the_mail_of_the_command_that_counts_them() -> None:
    found = group_steps(
        verified(
            state(5, 100, event_id="e5"),
            state(4, 101),
            state(5, 102, event_id="e5"),
            state(3, 190),
            state(6, 200),
            command(5, 110, claimed_ms=103, rules=(rule("stale_packets", 1), rule("duplicate_packets", 1))),
            command(6, 210, claimed_ms=201),
        )
    )
    assert mails(found.steps) == [["run-5", "run-4", "run-5"], ["run-6"]]
    assert [told(step.before) for step in found.steps] == [[], ["run-3"]]


def test_a_packet_that_was_neither_decided_nor_refused_is_named() -> None:
    found = group_steps(
        verified(
            state(1, 100),
            state(2, 200),
            state(3, 300),
            state(4, 400),
            command(1, 110, claimed_ms=101),
            command(3, 310, claimed_ms=301),
        )
    )
    assert mails(found.steps) == [["run-1"], ["run-3"]]
    assert found.unanswered == ["run-2", "run-4"]


def test_a_command_on_a_packet_that_is_not_recorded_is_named() -> None:
    found = group_steps(verified(state(2, 200), command(1, 110, claimed_ms=101), command(2, 210, claimed_ms=201)))
    assert found.unmatched == ["run-1"]
    assert mails(found.steps) == [["run-2"]]


def test_the_shared_tables_are_read_up_to_the_claim_or_the_commit_before() -> None:
    found = group_steps(
        verified(
            state(1, 100),
            state(2, 102),
            command(1, 150, claimed_ms=101, took_ms=40),
            command(2, 160, claimed_ms=103, took_ms=50),
        )
    )
    assert [step.shared_until_ms for step in found.steps] == [101, 150]


def test_a_redis_whose_clock_runs_ahead_is_reckoned_with() -> None:
    skewed = group_steps(
        verified(
            state(1, 5100), state(2, 5200), command(1, 5110, claimed_ms=101), command(2, 5210, claimed_ms=203)
        )
    )
    assert [step.shared_until_ms for step in skewed.steps] == [5100, 5202]


def test_why_the_network_had_no_say_is_taken_from_the_rule_that_fired() -> None:
    late = command(1, 110, claimed_ms=101, rules=(rule("failure", "timeout_inference", "timeout_inference"),))
    (step,) = group_steps(verified(state(1, 100), late)).steps
    assert step.failure == "timeout_inference"
