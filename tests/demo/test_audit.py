"""The account of a run, from its streams: it sees what is missing and what was answered twice."""

from __future__ import annotations

import msgspec
import pytest
import redis

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.enums import CommandType
from schemas.signing import Keyring
from schemas.tamiyo import AdaptationCommand
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.demo.audit import audit
from tests.graph.samples import sample_blueprint

KEYRING = Keyring({"k": b"secret"})


@pytest.fixture
def bus(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def publish(bus, stream: Stream, message, at_ms: int) -> None:
    bus.xadd(stream.value, encode_entry(message, KEYRING), id=f"{at_ms}-1")


def state(bus, step: int, at_ms: int, run_id: str = "r") -> None:
    packet = SystemStatePacket(run_id=run_id, packet_id=f"p{step}", global_step=step, timestamp_ns=1)
    publish(bus, Stream.STATE, packet, at_ms)


def command(bus, step: int, at_ms: int, *superseded: int, run_id: str = "r") -> None:
    answer = AdaptationCommand(
        command_id=f"c{at_ms}",
        command_type=CommandType.PAUSE,
        execution_deadline_ms=1,
        issued_at=1,
        run_id=run_id,
        packet_id=f"p{step}",
        global_step=step,
        superseded_packet_ids=[f"p{number}" for number in superseded],
        annotations={"feature_coverage": "0.500"},
    )
    publish(bus, Stream.COMMANDS, answer, at_ms)


def test_a_run_without_fault(bus) -> None:
    for step in (1, 2, 3):
        state(bus, step, 1000 * step)
    command(bus, 1, 1010)
    command(bus, 3, 3030, 2)
    account = audit(bus, "r", KEYRING)
    assert (account.published, account.decided, account.superseded) == (3, 2, 1)
    assert (account.missing, account.duplicates) == (0, 0)
    assert account.latencies_ms == (10.0, 30.0)
    assert account.latency_ms(50) == 20.0
    assert account.commands_by_type == {"PAUSE": 2}
    assert account.feature_coverage == 0.5


def test_a_step_without_an_answer_is_missing(bus) -> None:
    state(bus, 1, 1000)
    state(bus, 2, 2000)
    command(bus, 1, 1010)
    assert audit(bus, "r", KEYRING).missing == 1


def test_a_second_answer_is_a_duplicate(bus) -> None:
    state(bus, 1, 1000)
    command(bus, 1, 1010)
    command(bus, 1, 1020)
    assert audit(bus, "r", KEYRING).duplicates == 1


def test_a_step_both_decided_and_superseded_is_a_duplicate(bus) -> None:
    state(bus, 1, 1000)
    state(bus, 2, 2000)
    command(bus, 1, 1010)
    command(bus, 2, 2010, 1)
    account = audit(bus, "r", KEYRING)
    assert (account.duplicates, account.superseded) == (1, 0)


def test_other_runs_do_not_count(bus) -> None:
    state(bus, 1, 1000, run_id="other")
    command(bus, 1, 1010, run_id="other")
    account = audit(bus, "r", KEYRING)
    assert (account.published, account.decided, account.latency_ms(50)) == (0, 0, None)


def test_the_blueprints_size_is_counted(bus) -> None:
    blueprint = msgspec.structs.replace(sample_blueprint(), run_id="r")
    publish(bus, Stream.BLUEPRINTS, blueprint, 1)
    account = audit(bus, "r", KEYRING)
    assert blueprint.graph is not None
    assert account.layers == len(blueprint.graph.layers.layer_id)
    assert account.edges == len(blueprint.graph.adjacency.connects.source)
