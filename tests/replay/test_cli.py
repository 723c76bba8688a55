"""The commands as an operator types them."""

from __future__ import annotations

import json

import pytest

from schemas.catalogue import Stream
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.replay.recording_file import write_recording
from tests.replay.conftest import answer, entry, recording_of
from tests.test_cli import run

SECRET = "a secret of the tests"


@pytest.fixture
def file(tmp_path):
    packet = SystemStatePacket(run_id="run", packet_id="run-1", global_step=1, timestamp_ns=1)
    command = answer(1, claimed_ms=101)
    path = tmp_path / "run.rec"
    write_recording(path, recording_of(entry(Stream.STATE, 100, packet), entry(Stream.COMMANDS, 110, command)))
    return path


def test_differences_go_to_stdout_as_json_and_into_the_exit_status(file, tmp_path) -> None:
    done = run("replay", str(file), "--json", "-", cwd=tmp_path, TAMIYO_SIGNING_SECRET=SECRET, TAMIYO_DEVICE="cpu")
    report = json.loads(done.stdout)
    assert (done.returncode, report["commands"], report["identical"]) == (1, 1, 0)
    assert "step 1 (run-1)" in done.stderr


def test_a_recording_signed_with_another_key_is_refused_with_advice(file, tmp_path) -> None:
    done = run("replay", str(file), cwd=tmp_path, TAMIYO_SIGNING_SECRET="another", TAMIYO_SIGNING_KID="k1")
    assert done.returncode == 2
    assert "TAMIYO_SIGNING_SECRET" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    done = run("replay", "nowhere.rec", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.rec" in done.stderr
