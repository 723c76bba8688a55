"""Settings: where they come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.catalogue import Stream
from tamiyo_stream.settings import Settings, SettingsError, load_settings, render_reference


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_environment_wins_over_the_file(monkeypatch, tmp_path) -> None:
    (tmp_path / "tamiyo.toml").write_text('group = "from-file"\nclaim_count = 7\n')
    monkeypatch.setenv("TAMIYO_GROUP", "from-environment")
    settings = load_settings()
    assert (settings.group, settings.claim_count) == ("from-environment", 7)


def test_a_secret_is_read_from_the_file_that_is_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("TAMIYO_SIGNING_SECRET_FILE", str(tmp_path / "secret"))
    keyring = load_settings().keyring
    assert keyring is not None
    assert keyring.keys == {"k1": b"s3cret"}


def test_two_keys_are_active_while_one_is_rotated(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_SIGNING_SECRET", "new")
    monkeypatch.setenv("TAMIYO_SIGNING_PREVIOUS_SECRET", "old")
    keyring = load_settings().keyring
    assert keyring is not None
    assert (keyring.signing_kid, dict(keyring.keys)) == ("k1", {"k1": b"new", "k0": b"old"})


def test_a_wrong_value_names_the_setting_and_the_value(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_CLAIM_COUNT", "many")
    with pytest.raises(SettingsError, match=r"TAMIYO_CLAIM_COUNT.*'many'"):
        load_settings()


def test_an_unknown_setting_in_the_file_is_named(tmp_path) -> None:
    (tmp_path / "tamiyo.toml").write_text("claim_cuont = 7\n")
    with pytest.raises(SettingsError, match="TAMIYO_CLAIM_CUONT: no such setting"):
        load_settings()


def test_a_missing_configuration_file_is_named(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"no such file: nowhere\.toml"):
        load_settings()


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_REDIS_PASSWORD_FILE", "nowhere")
    with pytest.raises(SettingsError, match="TAMIYO_REDIS_PASSWORD_FILE: cannot read nowhere"):
        load_settings()


def test_nothing_secret_is_in_the_configuration_that_is_logged(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_REDIS_URL", "redis://user:hunter2@host:1/0")
    monkeypatch.setenv("TAMIYO_REDIS_PASSWORD", "hunter2")
    monkeypatch.setenv("TAMIYO_SIGNING_SECRET", "hunter2")
    shown = str(load_settings().redacted())
    assert "hunter2" not in shown
    assert "redis://user:***@host:1/0" in shown


def test_streams_can_be_renamed_and_partitioned(monkeypatch) -> None:
    monkeypatch.setenv("TAMIYO_STREAM_NAMES", '{"oona.tolaria.state": "other"}')
    monkeypatch.setenv("TAMIYO_PARTITIONS", "4")
    settings = load_settings()
    assert settings.key(Stream.STATE, 3) == "other.{3}"
    assert settings.key(Stream.COMMANDS) == "oona.tamiyo.commands"


def test_every_process_gets_its_own_worker_id() -> None:
    assert load_settings().worker_id != load_settings().worker_id


def test_the_reference_page_is_current_and_every_setting_is_explained() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == render_reference(), "run `tamiyo-stream config reference`"
    assert all(field.description for field in Settings.model_fields.values())
