"""The commands as a newcomer types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tamiyo_stream.demo.worker_process import WorkerProcess
from tests.upstream.waiting import wait_until


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAMIYO_")}
    return subprocess.run(
        [sys.executable, "-m", "tamiyo_stream", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
        env={**inherited, **environment},
    )


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert {"run", "demo", "check", "schema", "bench"} <= set(done.stdout.split())
    code = "import sys, tamiyo_stream.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_schema_export_writes_the_current_contracts(tmp_path) -> None:
    target = tmp_path / "asyncapi.yaml"
    assert run("schema", "export", "--out", str(target)).returncode == 0
    assert target.read_text().startswith("asyncapi: 3")
    assert run("schema", "export", "--out", "-").stdout == target.read_text()


def test_a_wrong_setting_stops_the_worker_with_its_name(tmp_path) -> None:
    done = run("run", cwd=tmp_path, TAMIYO_CLAIM_COUNT="many")
    assert done.returncode == 2
    assert "TAMIYO_CLAIM_COUNT" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TAMIYO_REDIS_URL": "http://nowhere"}, "TAMIYO_REDIS_URL"),
        ({"TAMIYO_DEVICE": "cuda:99"}, "cuda:99"),
    ],
)
def test_what_the_worker_cannot_start_with_is_named(tmp_path, environment, message) -> None:
    done = run("run", cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_check_is_content_where_redis_answers(redis_url, tmp_path) -> None:
    done = run("check", cwd=tmp_path, TAMIYO_REDIS_URL=redis_url)
    assert done.returncode == 0, done.stdout
    assert "fix" not in done.stdout
    for subject in ("torch", "torch-geometric", "torch-scatter", "redis", "oona.tolaria.state", "model"):
        assert subject in done.stdout


def test_check_says_what_to_do_where_redis_is_away(tmp_path) -> None:
    done = run("check", cwd=tmp_path, TAMIYO_REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert "TAMIYO_REDIS_URL" in done.stdout


def test_the_worker_drains_on_sigterm_and_exits_with_zero(redis_url, tmp_path) -> None:
    with WorkerProcess({"TAMIYO_REDIS_URL": redis_url, "TAMIYO_VAR_DIR": "var"}, tmp_path / "log") as worker:
        worker.wait_until_ready()
        assert worker.stop() == 0
    assert "stopped" in (tmp_path / "log").read_text()


def test_a_worker_that_finds_no_redis_waits_for_it_and_says_so(tmp_path) -> None:
    environment = {**os.environ, "TAMIYO_REDIS_URL": "redis://127.0.0.1:1/0", "TAMIYO_VAR_DIR": str(tmp_path)}
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, "-m", "tamiyo_stream", "run"], env=environment, stderr=sink)
    try:
        wait_until(lambda: "redis_unavailable" in log.read_text(), "the outage is logged", timeout_s=60)
        assert "TAMIYO_REDIS_URL" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
