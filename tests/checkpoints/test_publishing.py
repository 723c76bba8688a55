"""Publishing a policy: what goes out, in which order, and what does not."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from fakeredis import FakeRedis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.record import Message
from schemas.signing import Keyring
from schemas.simic import PolicyUpdate, RegistrySnapshot
from tamiyo_stream.checkpoints import publishing
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.publishing import policy_messages, publish
from tamiyo_stream.checkpoints.updates import read_update
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.graph.registry_exchange import merge_snapshot
from tamiyo_stream.model.network import build_network
from tests.checkpoints.samples import KEYRING, sample_checkpoint, sample_file, sample_registries

STREAM = Stream.POLICY.value


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed policy of the real network that knows two seeds."""
    path = tmp_path_factory.mktemp("policy") / "tamiyo_gnn_v1.pt"
    checkpoint = Checkpoint.of(
        build_network(),
        policy_version="policy-1",
        provenance=Provenance("trainer", ("run-1", "run-2")),
        registries=sample_registries().snapshots(),
    )
    write_checkpoint(path, checkpoint, KEYRING)
    return path


@pytest.fixture
def client() -> FakeRedis:
    """An empty bus."""
    return FakeRedis()


@pytest.fixture
def console() -> Console:
    """A console that writes to memory."""
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def sent(client: FakeRedis, keyring: Keyring | None = KEYRING) -> list[Message]:
    entries: Any = client.xrange(STREAM)
    return [decode_entry(fields, keyring, stream=Stream.POLICY).message for _, fields in entries]


def test_the_vocabularies_go_out_before_the_policy_that_needs_them(
    policy: Path, client: FakeRedis, console: Console
) -> None:
    assert publish(policy, client, stream=STREAM, keyring=KEYRING, console=console) == 0
    snapshot, update = sent(client)
    assert isinstance(snapshot, RegistrySnapshot)
    assert isinstance(update, PolicyUpdate)
    live = Registries()
    assert merge_snapshot(live, snapshot) == 2
    assert live["seed"].entries == {"seed0": 1, "seed1": 2}


def test_a_worker_can_verify_the_file_from_what_the_update_says(
    policy: Path, client: FakeRedis, console: Console
) -> None:
    publish(policy, client, stream=STREAM, keyring=KEYRING, console=console)
    update = sent(client)[-1]
    assert isinstance(update, PolicyUpdate)
    assert update.uri == policy.resolve().as_uri()
    assert update.payload is None
    assert update.training_run_id == "run-2"
    assert update.tamiyo_policy_version == "tamiyo_gnn_v1"
    assert read_update(update, Registries()).policy_version == "policy-1"


def test_every_publication_is_an_update_of_its_own(policy: Path, client: FakeRedis, console: Console) -> None:
    for _ in range(2):
        publish(policy, client, stream=STREAM, keyring=KEYRING, console=console)
    updates = [message for message in sent(client) if isinstance(message, PolicyUpdate)]
    assert len({update.policy_id for update in updates}) == 2
    assert updates[0].issued_at < updates[1].issued_at


def test_another_place_can_be_named(policy: Path, client: FakeRedis, console: Console) -> None:
    publish(policy, client, stream=STREAM, keyring=KEYRING, uri="file:///policies/a.pt", console=console)
    update = sent(client)[-1]
    assert isinstance(update, PolicyUpdate)
    assert update.uri == "file:///policies/a.pt"


def test_a_small_checkpoint_travels_in_the_entry() -> None:
    data = sample_file(".pt")
    *_, update = policy_messages(data, sample_checkpoint(), uri="file:///a", issued_at_ns=5, policy_id="p")
    assert isinstance(update, PolicyUpdate)
    assert update.uri is None
    assert update.payload == data
    assert update.sha256 == hashlib.sha256(data).hexdigest()


def test_fixed_vocabularies_are_not_sent() -> None:
    checkpoint = replace(sample_checkpoint(), registries=Registries().snapshots())
    messages = policy_messages(b"x", checkpoint, uri="file:///a", issued_at_ns=5, policy_id="p")
    assert [type(message) for message in messages] == [PolicyUpdate]


def test_an_unsigned_file_is_not_published_under_a_key(
    policy: Path, tmp_path: Path, client: FakeRedis, console: Console
) -> None:
    path = tmp_path / "unsigned.pt"
    path.write_bytes(policy.read_bytes())
    assert publish(path, client, stream=STREAM, keyring=KEYRING, console=console) == 1
    assert "refused (missing_signature)" in printed(console)
    assert not client.exists(STREAM)


def test_without_a_key_it_is_published_unsigned_and_said_so(
    policy: Path, client: FakeRedis, console: Console
) -> None:
    assert publish(policy, client, stream=STREAM, console=console) == 0
    assert "unsigned" in printed(console)
    assert len(sent(client, None)) == 2


def test_a_damaged_file_is_not_published(tmp_path: Path, client: FakeRedis, console: Console) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(sample_file(".pt")[:1000])
    assert publish(path, client, stream=STREAM, console=console) == 1
    assert "refused (not_a_checkpoint)" in printed(console)
    assert not client.exists(STREAM)


def test_a_redis_that_is_away_is_said(policy: Path, console: Console) -> None:
    away = redis.Redis(unix_socket_path="/nonexistent/redis.sock", retry=Retry(NoBackoff(), 0))
    assert publish(policy, away, stream=STREAM, keyring=KEYRING, console=console) == 1
    assert f"cannot write to {STREAM}" in printed(console)


def test_the_network_itself_is_too_large_to_travel_in_an_entry(policy: Path) -> None:
    assert policy.stat().st_size > publishing.INLINE_BYTES
