"""Writing a checkpoint file."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.checkpoints.writing import CheckpointNotSaved, encode_checkpoint, write_checkpoint
from tamiyo_stream.runs.state import EwmaNorm
from tests.checkpoints.samples import FORMS, read, sample_checkpoint, sample_file, sample_state


@pytest.mark.parametrize("form", FORMS)
def test_the_suffix_chooses_the_form_and_the_digest_is_the_files(tmp_path: Path, form: str) -> None:
    path = tmp_path / "policies" / f"tamiyo_gnn_v1{form}"
    digest = write_checkpoint(path, sample_checkpoint())
    assert path.read_bytes() == sample_file(form)
    assert digest == hashlib.sha256(sample_file(form)).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.bin'"):
        write_checkpoint(tmp_path / "policy.bin", sample_checkpoint())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named_and_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(CheckpointNotSaved, match=r"cannot write checkpoint .*policy\.pt"):
        write_checkpoint(tmp_path / "file" / "policy.pt", sample_checkpoint())
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.pt"
    path.write_bytes(b"the old one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointNotSaved, match="free space"):
        write_checkpoint(path, sample_checkpoint())
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_would_be_refused_is_not_written() -> None:
    ours = sample_checkpoint()
    wrong = {
        Reason.NOT_FINITE: replace(ours, state=sample_state() | {"heads.risk.0.bias": torch.full((8,), math.nan)}),
        Reason.SHAPES: replace(ours, state=sample_state() | {"heads.risk.0.bias": torch.zeros(9)}),
        Reason.NAMES: replace(ours, state=sample_state() | {"more": torch.zeros(9)}),
        Reason.DTYPES: replace(ours, state={name: value.double() for name, value in ours.state.items()}),
        Reason.NORMS: replace(ours, norms={"loss": EwmaNorm(math.inf, 1.0)}),
        Reason.NOT_A_CHECKPOINT: replace(ours, policy_version=""),
        Reason.REGISTRY_RENUMBERED: replace(
            ours, registries={**ours.registries, "optimizer_family": {"adam": 1, "sgd": 2}}
        ),
    }
    for reason, checkpoint in wrong.items():
        with pytest.raises(CheckpointRefused) as caught:
            encode_checkpoint(checkpoint)
        assert caught.value.reason is reason


def test_full_registries_with_long_keys_fit_the_archive_and_not_the_tensor_file() -> None:
    entries = {f"{'x' * 2000}{index}": index for index in range(1, 1000)}
    checkpoint = replace(sample_checkpoint(), registries={**sample_checkpoint().registries, "blueprint": entries})
    assert read(encode_checkpoint(checkpoint, ".pt")).registries["blueprint"] == entries
    with pytest.raises(ValueError, match=r"write it as \.pt"):
        encode_checkpoint(checkpoint, ".safetensors")
