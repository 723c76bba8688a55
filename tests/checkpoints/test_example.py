"""The example of docs/simic.md runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from schemas.catalogue import Stream
from schemas.entry import decode_entry
from schemas.simic import PolicyUpdate
from tamiyo_stream.checkpoints.reading import read_checkpoint
from tamiyo_stream.settings import load_settings

SCRIPT = Path(__file__).parents[2] / "examples" / "train_policy.py"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_policy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["train_policy"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_policy"]


def test_it_trains_writes_verifies_and_publishes(
    example: Any, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMIYO_SIGNING_SECRET", "secret")
    settings = load_settings(redis_url=redis_url)
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    with Redis.from_url(redis_url) as client:
        example.record_synthetic_run(client, settings, steps=4)
        assert example.main(["--redis", redis_url, "--out", str(first), "--steps", "1"]) == 0
        arguments = ["--redis", redis_url, "--out", str(second), "--parent", str(first), "--steps", "1"]
        assert example.main([*arguments, "--version", "example-2"]) == 0
        entries = client.xrange(settings.key(Stream.POLICY))
    parent, child = read_checkpoint(first), read_checkpoint(second)
    assert child.provenance.parent_digest == parent.digest
    assert child.digest != parent.digest
    assert child.registries == parent.registries
    assert child.registries["seed"]["seed0"] >= 1
    assert child.norms["loss"].count == 4
    messages = [decode_entry(fields, settings.keyring, stream=Stream.POLICY).message for _, fields in entries]
    assert [type(message) is PolicyUpdate for message in messages].count(True) == 2


def test_a_redis_without_reports_is_said(
    example: Any, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert example.main(["--redis", redis_url, "--out", str(tmp_path / "none.pt")]) == 1
    assert list(tmp_path.iterdir()) == []
