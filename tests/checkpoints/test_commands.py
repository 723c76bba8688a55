"""The commands of ``tamiyo-stream checkpoint``: what they print and their exit status."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tamiyo_stream.checkpoints import commands
from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.reading import read_checkpoint
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.network import build_network
from tests.checkpoints.hostile import CANARY, PICKLES, with_pickle
from tests.checkpoints.samples import (
    KEYRING,
    file_of,
    sample_checkpoint,
    sample_document,
    sample_file,
    sample_state,
)


@pytest.fixture
def console() -> Console:
    """A console that writes to memory."""
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained policy of seed 3."""
    path = tmp_path_factory.mktemp("policy") / "tamiyo_gnn_v1.pt"
    assert commands.init(3, path, keyring=KEYRING, console=Console(file=io.StringIO())) == 0
    return path


def test_init_writes_the_policy_of_the_seed(policy: Path) -> None:
    checkpoint = read_checkpoint(policy)
    assert (
        checkpoint.digest
        == Checkpoint.of(
            build_network(seed=3), policy_version="p", provenance=Provenance("t"), registries={}
        ).digest
    )
    assert checkpoint.policy_version == "tamiyo_gnn_v1-seed3"


def test_init_twice_gives_the_same_bytes(policy: Path, tmp_path: Path, console: Console) -> None:
    again = tmp_path / "again.pt"
    commands.init(3, again, console=console)
    assert again.read_bytes() == policy.read_bytes()
    assert hashlib.sha256(again.read_bytes()).hexdigest() in printed(console)


def test_init_takes_the_registries_of_the_worker(tmp_path: Path, console: Console) -> None:
    registries = Registries(tmp_path)
    registries.index("seed", "seed-of-this-worker")
    registries.flush()
    out = tmp_path / "policy.pt"
    assert commands.init(0, out, registries_dir=tmp_path, console=console) == 0
    assert read_checkpoint(out).registries["seed"] == {"seed-of-this-worker": 1}


def test_init_says_why_it_cannot_write(tmp_path: Path, console: Console) -> None:
    assert commands.init(0, tmp_path / "policy.bin", console=console) == 1
    assert ".pt" in printed(console)


def test_inspect_tells_what_is_in_the_file(tmp_path: Path, console: Console) -> None:
    path = tmp_path / "sample.safetensors"
    write_checkpoint(path, sample_checkpoint())
    assert commands.inspect(path, console=console) == 0
    text = printed(console)
    for fact in ("policy-7", "tamiyo_gnn_v1", "hidden_width 8", "run-1", "registry seed", "2 keys", "loss"):
        assert fact in text


def test_inspect_opens_checkpoints_that_do_not_fit(tmp_path: Path, console: Console) -> None:
    document = sample_document() | {"architecture_version": "tamiyo_gnn_v9", "registries": 3, "norms": None}
    path = tmp_path / "other.pt"
    path.write_bytes(file_of(".pt", document))
    assert commands.inspect(path, console=console) == 0
    assert "tamiyo_gnn_v9" in printed(console)


def test_inspect_keeps_control_characters_from_the_terminal(tmp_path: Path, console: Console) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(file_of(".pt", sample_document() | {"policy_version": "\x1b[31mred[bold]"}))
    assert commands.inspect(path, console=console) == 0
    assert "\x1b" not in printed(console)
    assert "[bold]" in printed(console)


@pytest.mark.parametrize("command", [commands.inspect, commands.verify])
def test_a_hostile_file_is_refused_with_its_reason_and_not_executed(
    command: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pt"
    path.write_bytes(with_pickle(PICKLES["os.system by GLOBAL and REDUCE"]))
    assert callable(command)
    assert command(path, console=console) == 1
    assert "refused (unsafe_pickle)" in printed(console)
    assert not Path(CANARY).exists()


def test_verify_accepts_a_sound_policy(policy: Path, console: Console) -> None:
    digest = hashlib.sha256(policy.read_bytes()).hexdigest()
    assert commands.verify(policy, sha256=digest, keyring=KEYRING, console=console) == 0
    assert "sound" in printed(console)
    assert "valid" in printed(console)


def test_verify_refuses_another_digest(policy: Path, console: Console) -> None:
    assert commands.verify(policy, sha256="0" * 64, console=console) == 1
    assert "refused (digest_mismatch)" in printed(console)


def test_verify_compares_with_the_registries_of_the_worker(policy: Path, tmp_path: Path, console: Console) -> None:
    (tmp_path / "seed_registry.json").write_text('{"a": 1}', encoding="utf-8")
    grown, renumbered = tmp_path / "grown.pt", tmp_path / "renumbered.pt"
    base = read_checkpoint(policy)
    write_checkpoint(grown, replace(base, registries={**base.registries, "seed": {"a": 1, "b": 2}}))
    write_checkpoint(renumbered, replace(base, registries={**base.registries, "seed": {"b": 1, "a": 2}}))
    assert commands.verify(grown, registries_dir=tmp_path, console=console) == 0
    assert "registry seed" in printed(console)
    assert "1 keys more" in printed(console)
    assert commands.verify(renumbered, registries_dir=tmp_path, console=console) == 1
    assert "refused (registry_renumbered)" in printed(console)


def test_verify_says_when_the_workers_registries_are_unreadable(
    policy: Path, tmp_path: Path, console: Console
) -> None:
    (tmp_path / "seed_registry.json").write_text("{", encoding="utf-8")
    assert commands.verify(policy, registries_dir=tmp_path, console=console) == 1
    assert "seed_registry.json" in printed(console)


def test_diff_of_equal_content_is_empty_across_forms(tmp_path: Path, console: Console) -> None:
    for form in (".pt", ".safetensors"):
        (tmp_path / f"a{form}").write_bytes(sample_file(form))
    assert commands.diff(tmp_path / "a.pt", tmp_path / "a.safetensors", console=console) == 0
    assert printed(console) == "no difference\n"


def test_diff_names_what_differs(tmp_path: Path, console: Console) -> None:
    ours = sample_checkpoint()
    state = sample_state()
    state["heads.risk.0.weight"] *= 1.5
    other = replace(
        ours,
        state=state,
        policy_version="policy-8",
        config=replace(ours.config, dropout=0.5),
        registries={**ours.registries, "seed": {"seed0": 1}, "blueprint": {"k": 1}, "layer_type": {"linear": 1}},
    )
    write_checkpoint(tmp_path / "a.pt", replace(ours, registries={**ours.registries, "layer_type": {"conv2d": 1}}))
    write_checkpoint(tmp_path / "b.pt", other)
    assert commands.diff(tmp_path / "a.pt", tmp_path / "b.pt", console=console) == 1
    lines = printed(console).splitlines()
    assert "policy_version: policy-7 → policy-8" in lines
    assert "config.dropout: 0.2 → 0.5" in lines
    assert "registries.seed: 2 keys → 1 keys, is a beginning of it" in lines
    assert "registries.blueprint: 0 keys → 1 keys, continues it" in lines
    assert "registries.layer_type: 1 keys → 1 keys, numbers it otherwise" in lines
    moved = [line for line in lines if "moved" in line]
    assert len(moved) == 1
    assert moved[0].startswith("heads.risk ")
    assert "1 of 4 tensors" in moved[0]


def test_diff_names_tensors_that_only_one_has(tmp_path: Path, console: Console) -> None:
    state = sample_state()
    state["heads.extra"] = state.pop("heads.risk.0.bias")
    (tmp_path / "a.pt").write_bytes(sample_file(".pt"))
    (tmp_path / "b.pt").write_bytes(file_of(".pt", state=state))
    assert commands.diff(tmp_path / "a.pt", tmp_path / "b.pt", console=console) == 1
    assert "tensor heads.risk.0.bias: float32 [8] → absent" in printed(console)
    assert "tensor heads.extra: absent → float32 [8]" in printed(console)


def test_diff_says_why_a_file_cannot_be_read(tmp_path: Path, console: Console) -> None:
    (tmp_path / "a.pt").write_bytes(sample_file(".pt"))
    assert commands.diff(tmp_path / "a.pt", tmp_path / "none.pt", console=console) == 1
    assert "refused (unreadable)" in printed(console)


def test_diff_refuses_weights_that_are_not_float32(tmp_path: Path, console: Console) -> None:
    data = sample_file(".safetensors")
    length = int.from_bytes(data[:8], "little")
    (tmp_path / "a.safetensors").write_bytes(data)
    (tmp_path / "b.safetensors").write_bytes(data[:length].replace(b'"F32"', b'"I32"') + data[length:])
    assert commands.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", console=console) == 1
    assert "refused (dtypes)" in printed(console)
