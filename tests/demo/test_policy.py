"""The policy that is published in the middle of the demo, and what the account says of the policies."""

from __future__ import annotations

from pathlib import Path

import msgspec

from schemas.catalogue import Stream
from schemas.enums import CommandType
from schemas.record import Message
from schemas.simic import PolicyUpdate
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.checkpoints.updates import read_update
from tamiyo_stream.demo.audit import policies_of
from tamiyo_stream.demo.policy import NextPolicy
from tamiyo_stream.graph.registries import Registries


class Bus:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[Stream, Message]] = []

    def publish(self, stream: Stream, message: Message, *, keep_as: str = "") -> bool:
        assert not keep_as
        self.published.append((stream, message))
        return True


def test_the_policy_is_published_once_when_its_step_has_come_and_a_worker_can_read_it(tmp_path: Path) -> None:
    bus, policy = Bus(), NextPolicy(40, 6, tmp_path)
    policy.publish_when_due(39, bus)
    assert bus.published == []
    policy.publish_when_due(41, bus)
    policy.publish_when_due(42, bus)
    ((stream, update),) = bus.published
    assert stream is Stream.POLICY
    assert isinstance(update, PolicyUpdate)
    assert read_update(update, Registries()).policy_version == "demo-seed6"


def decided(step: int, digest: str | None) -> AdaptationCommand:
    values = {
        field.name: {str: "", int: step, float: 0.0, dict: {}, list: []}.get(field.type)
        for field in msgspec.structs.fields(AdaptationCommand)
        if field.required
    }
    notes = {} if digest is None else {"policy_digest": digest, "policy_version": f"v-{digest}"}
    return AdaptationCommand(
        **values | {"global_step": step, "command_type": CommandType.PAUSE, "annotations": notes}
    )


def test_the_account_lists_the_policies_in_the_order_in_which_they_decided() -> None:
    commands = [decided(1, "a"), decided(2, "a"), decided(3, None), decided(4, "b"), decided(5, "a")]
    found = policies_of(commands)
    assert [(one["digest"], one["from_step"], one["decisions"]) for one in found] == [
        ("a", 1, 2),
        ("b", 4, 1),
        ("a", 5, 1),
    ]
    assert found[0]["version"] == "v-a"
