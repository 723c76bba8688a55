"""The signature beside a checkpoint file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.signing import Keyring
from tamiyo_stream.checkpoints.reading import Trust
from tamiyo_stream.checkpoints.refusal import Reason
from tamiyo_stream.checkpoints.signature import sign_checkpoint, signature_path
from tamiyo_stream.checkpoints.writing import write_checkpoint
from tests.checkpoints.samples import KEYRING, read, refusal_of, sample_checkpoint, sample_file

SIGNED = Trust(keyring=KEYRING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A signed checkpoint."""
    path = tmp_path / "policy.pt"
    write_checkpoint(path, sample_checkpoint(), KEYRING)
    return path


def test_a_signed_file_is_read(path: Path) -> None:
    assert read(path, SIGNED).policy_version == "policy-7"


def test_the_signature_can_travel_apart_from_the_file(path: Path) -> None:
    signature = signature_path(path).read_bytes()
    assert read(path.read_bytes(), Trust(keyring=KEYRING, signature=signature)).policy_version == "policy-7"


def test_during_rotation_the_older_key_still_verifies(path: Path) -> None:
    both = Keyring({"k2": b"new", "k1": b"secret"})
    assert read(path, Trust(keyring=both)).policy_version == "policy-7"


def test_an_unsigned_file_is_refused_where_a_key_is_configured(path: Path) -> None:
    signature_path(path).unlink()
    assert refusal_of(path, SIGNED).reason is Reason.MISSING_SIGNATURE
    assert refusal_of(sample_file(".pt"), SIGNED).reason is Reason.MISSING_SIGNATURE


def test_without_a_key_signatures_are_not_looked_at(path: Path) -> None:
    signature_path(path).write_text("nonsense", encoding="utf-8")
    assert read(path).policy_version == "policy-7"


@pytest.mark.parametrize(
    "keyring", [Keyring({"k1": b"other secret"}), Keyring({"k9": b"secret"})], ids=["secret", "kid"]
)
def test_a_signature_of_another_key_is_refused(path: Path, keyring: Keyring) -> None:
    assert refusal_of(path, Trust(keyring=keyring)).reason is Reason.INVALID_SIGNATURE


@pytest.mark.parametrize("field", ["kid", "policy_version", "sha256", "signature"])
@pytest.mark.parametrize("value", ["x", "", None, "\ud800"])
def test_a_signature_with_an_altered_field_is_refused(path: Path, field: str, value: str | None) -> None:
    sidecar = signature_path(path)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {field: value}), encoding="utf-8")
    assert refusal_of(path, SIGNED).reason is Reason.INVALID_SIGNATURE


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 4000, "{}"])
def test_a_signature_that_is_none_is_refused(path: Path, text: str) -> None:
    signature_path(path).write_text(text, encoding="utf-8")
    assert refusal_of(path, SIGNED).reason is Reason.INVALID_SIGNATURE


def test_a_signature_does_not_vouch_for_another_file(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    write_checkpoint(other, replace(sample_checkpoint(), policy_version="policy-8"), KEYRING)
    signature_path(other).replace(signature_path(path))
    assert refusal_of(path, SIGNED).reason is Reason.INVALID_SIGNATURE


def test_a_signature_of_another_policy_version_is_refused(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    signature_path(path).write_text(sign_checkpoint(KEYRING, "policy-9", digest), encoding="utf-8")
    refused = refusal_of(path, SIGNED)
    assert refused.reason is Reason.INVALID_SIGNATURE
    assert "policy-9" in str(refused)


def test_a_bad_signature_is_refused_before_the_file_is_opened(path: Path) -> None:
    path.write_bytes(b"\x80\x02cos\nsystem\n")
    assert refusal_of(path, SIGNED).reason is Reason.INVALID_SIGNATURE


def test_writing_without_a_key_removes_the_signature_of_what_was_there(path: Path) -> None:
    write_checkpoint(path, sample_checkpoint())
    assert not signature_path(path).exists()
