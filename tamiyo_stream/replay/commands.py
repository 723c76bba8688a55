"""``tamiyo-stream record`` and ``replay``: what they print and how they end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.replay.comparison import Differences, differences
from tamiyo_stream.replay.grouping import Steps, group_steps
from tamiyo_stream.replay.policies import checkpoint_policy, recorded_policy, recorded_settings
from tamiyo_stream.replay.recorder import record_run
from tamiyo_stream.replay.recording import Header, VerifiedRecording
from tamiyo_stream.replay.recording_file import read_recording, write_recording
from tamiyo_stream.replay.replaying import Replayed, replay
from tamiyo_stream.runs.state import RunState
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import open_blocking_client

NS_PER_S = 1e9
#: Differing steps shown on the terminal; the JSON holds all of them.
SHOWN = 20


def record(settings: Settings, run_id: str, out: Path, *, from_id: str = "", to_id: str = "") -> int:
    """Record ``run_id`` to ``out`` and say what it holds; return the exit status.

    Raises:
        LookupError, ValueError, OSError, redis.RedisError: as :func:`~.recorder.record_run` and
            :func:`~.recording_file.write_recording`.
    """
    with open_blocking_client(settings) as client:
        recording = record_run(client, settings, run_id, from_id=from_id, to_id=to_id)
    size = write_recording(out, recording)
    Console(stderr=True).print(f"{out}: {len(recording.entries)} entries, {size} bytes", soft_wrap=True)
    return 0


def replay_file(
    settings: Settings, file: Path, policy: Path | None = None, against: Path | None = None
) -> dict[str, Any]:
    """Decide the recording ``file`` again and return the comparison, as plain values.

    Compared with the recorded commands, or with the decisions of the checkpoint ``against``. ``policy``: a
    checkpoint; None = what the worker started with. ``settings`` give the keys.

    Raises:
        RecordingRefused, CheckpointRefused, SettingsError, RegistryRenumbered, OSError: the text says what to do.
    """
    recording = VerifiedRecording.of(read_recording(file), settings.keyring)
    header, steps = recording.header, group_steps(recording)
    then = recorded_settings(header)
    deciding = recorded_policy(header, then) if policy is None else checkpoint_policy(policy, header, then)
    started = time.perf_counter()
    replayed = anyio.run(replay, steps, recording.shared, deciding, then, RunState(run_id=header.run_id))
    seconds = time.perf_counter() - started
    expected: Sequence[AdaptationCommand | None] = [item.step.command for item in replayed]
    compared_with = "recording"
    if against is not None:
        other = checkpoint_policy(against, header, then)
        again = anyio.run(replay, steps, recording.shared, other, then, RunState(run_id=header.run_id))
        expected = [item.command for item in again]
        compared_with = other.engine.policy_digest
    report = _report(header, steps, replayed, expected, seconds)
    engine = deciding.engine
    return {
        "policy": engine.policy_digest,
        "products": engine.statistics().products,
        "compared_with": compared_with,
        **report,
    }


def show_report(report: dict[str, Any], json_file: Path | None) -> int:
    """Print ``report`` and write it to ``json_file``; return 0 where nothing differs, else 1."""
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    for step in report["differences"][:SHOWN]:
        console.print(f"step {step['global_step']} ({step['packet_id']})")
        for name, (before, now) in step["fields"].items():
            console.print(f"  {name}: {before!r} -> {now!r}")
    hidden = len(report["differences"]) - SHOWN
    if hidden > 0:
        console.print(f"and {hidden} more steps; --json FILE has all of them")
    for warning in report["warnings"]:
        console.print(f"note: {warning}")
    console.print(
        f"{report['identical']} of {report['commands']} commands identical, {report['seconds']:.2f} s, "
        f"{report['times_real_time']:.1f} times as fast as it happened"
    )
    text = json.dumps(report, indent=2) + "\n"
    if json_file is not None and str(json_file) == "-":
        sys.stdout.write(text)
    elif json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    return 0 if report["identical"] == report["commands"] else 1


def _report(
    header: Header,
    steps: Steps,
    replayed: Sequence[Replayed],
    expected: Sequence[AdaptationCommand | None],
    seconds: float,
) -> dict[str, Any]:
    found = [
        (item.step, differences(before, item.command)) for item, before in zip(replayed, expected, strict=True)
    ]
    differing = [_difference(step.command, fields) for step, fields in found if fields]
    recorded_s = _duration_s(steps)
    return {
        "run_id": header.run_id,
        "recorded_policies": _policies(steps),
        "commands": len(replayed),
        "identical": len(replayed) - len(differing),
        "differences": differing,
        "warnings": _warnings(header, steps),
        "seconds": seconds,
        "recorded_seconds": recorded_s,
        "times_real_time": recorded_s / seconds if seconds else 0.0,
    }


def _difference(command: AdaptationCommand, fields: Differences) -> dict[str, Any]:
    return {"packet_id": command.packet_id, "global_step": command.global_step, "fields": fields}


def _policies(steps: Steps) -> list[str]:
    """Return the digests of the policies that decided when this was recorded, in order."""
    digests = (step.command.annotations.get("policy_digest") for step in steps.steps)
    return list(dict.fromkeys(digest for digest in digests if digest))


def _duration_s(steps: Steps) -> float:
    commands = [step.command for step in steps.steps]
    return (commands[-1].issued_at - commands[0].issued_at) / NS_PER_S if commands else 0.0


def _warnings(header: Header, steps: Steps) -> list[str]:
    """Return what keeps a replay from being exact, in words."""
    found = []
    commands = len(steps.steps) + len(steps.unmatched)
    if header.from_id:
        found.append(f"recorded from {header.from_id} on: what the run was before is not known")
    elif not header.to_id and header.decided not in {None, commands}:
        found.append(f"the run was decided {header.decided} times, {commands} commands are recorded")
    if steps.unmatched:
        found.append(f"{len(steps.unmatched)} commands answer packets that are not recorded")
    if len(_policies(steps)) > 1:
        found.append(f"{len(_policies(steps))} policies decided when this was recorded, one does here")
    if steps.unanswered:
        found.append(f"{len(steps.unanswered)} packets have no command")
    return found
