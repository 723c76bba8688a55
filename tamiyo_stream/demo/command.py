"""``tamiyo-stream demo``: embedded Redis, the worker as its own process, a training run, and the account of it."""

from __future__ import annotations

import io
import json
import secrets
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any, TextIO

import redis
import torch
from rich.console import Console
from rich.table import Table

from schemas.signing import Keyring
from tamiyo_stream.demo.audit import Audit, audit
from tamiyo_stream.demo.options import DemoOptions
from tamiyo_stream.demo.platform import plant_seeds, publish_tables
from tamiyo_stream.demo.policy import NextPolicy
from tamiyo_stream.demo.training import Arrival, CharacterTraining, TrainingRun
from tamiyo_stream.demo.view import LiveView, PlainView, View
from tamiyo_stream.demo.worker_process import WorkerFailed, WorkerProcess
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.embedded_redis import EmbeddedRedis, RedisServerUnavailable, free_port
from tamiyo_stream.upstream.publisher import StreamPublisher

RUN_ID = "demo"
KEY_ID = "demo"
#: Losses averaged for the first and the last figure of the summary.
LOSS_WINDOW = 10
#: A batch of sixteen short windows has a noisy loss, and model, worker and Redis share a laptop's cores; the
#: defaults are made for larger runs on machines of their own.
_RISK_SETTINGS = {
    "TAMIYO_DECISION_DEADLINE_MS": "250",
    "TAMIYO_RISK__CPU_UTIL_PERCENT": "101",
    "TAMIYO_RISK__LOSS_SPIKE": "0.8",
    "TAMIYO_RISK__LOSS_WARNING": "0.5",
    "TAMIYO_RISK__LOSS_VOLATILITY": "0.5",
    "TAMIYO_RISK__STEP_LATENCY_MS": "1000",
    "TAMIYO_CONSERVATIVE__COOL_DOWN_MS": "1000",
    "TAMIYO_BREAKER__COOL_DOWN_MS": "1000",
    "TAMIYO_SHADOW_GRAPHS": "8",
    "TAMIYO_TRIAL_DECISIONS": "20",
    "TAMIYO_TRIAL_LATE_SHARE": "0.5",
}
EXIT_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130


def run_demo(options: DemoOptions) -> int:
    """Run the demo and return the exit status: 0 when every step was published and answered exactly once."""
    to_stdout = options.json_file is not None and str(options.json_file) == "-"
    console = Console(stderr=to_stdout)
    try:
        with _termination_as_interrupt(), _report_file(options.json_file) as file:
            report = _demonstrate(options, console)
            file.write(json.dumps(report, indent=2) + "\n")
    except KeyboardInterrupt:
        console.print("\nstopped; worker and Redis are down")
        return EXIT_INTERRUPTED
    except (WorkerFailed, RedisServerUnavailable, redis.RedisError, OSError) as error:
        console.print(f"[red]the demo cannot run:[/] {error}", soft_wrap=True)
        return EXIT_UNUSABLE
    lost = report["steps"] - report["steps_published"] + report["missing"]
    return 0 if lost == 0 and report["duplicates"] == 0 else EXIT_FAILED


def _demonstrate(options: DemoOptions, console: Console) -> dict[str, Any]:
    # One thread for the model in training: the other core is the worker's.
    torch.set_num_threads(1)
    secret = secrets.token_hex(32)
    keyring = Keyring({KEY_ID: secret.encode()})
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tamiyo-demo-")))
        server = stack.enter_context(EmbeddedRedis())
        web_port = free_port()
        worker = stack.enter_context(
            WorkerProcess(
                _worker_environment(server.url, secret, scratch, options.seed, web_port), scratch / "worker.log"
            )
        )
        console.print(f"Redis on {server.url}, worker process {worker.pid} starting", highlight=False)
        console.print(f"panel: http://127.0.0.1:{web_port}/", highlight=False)
        publisher = stack.enter_context(StreamPublisher(server.url, keyring))
        run = _platform(options, publisher, CommandInbox(server.url, RUN_ID, keyring), keyring)
        stack.callback(run.close)
        policy = None if options.swap_at is None else NextPolicy(options.swap_at, options.seed + 1, scratch)
        worker.wait_until_ready()
        losses, arrivals = _train(run, worker, _view(options, console), policy, publisher)
        run.close()
        publisher.close()
        client = stack.enter_context(redis.Redis.from_url(server.url))
        account = audit(client, RUN_ID, keyring)
        status = worker.stop()
    report = _report(options, account, losses, arrivals, worker_status=status)
    console.print(_summary(report))
    return report


def _platform(
    options: DemoOptions, publisher: StreamPublisher, inbox: CommandInbox, keyring: Keyring
) -> TrainingRun:
    """Return the training run with the rest of the platform around it; the worker starts meanwhile."""
    training = CharacterTraining(options.seed)
    publish_tables(publisher, training, RUN_ID, options.without)
    seeds = plant_seeds(publisher, training, RUN_ID, options.without, keyring)
    return TrainingRun(RUN_ID, training, publisher, inbox, seeds, steps=options.steps)


def _train(
    run: TrainingRun, worker: WorkerProcess, view: View, policy: NextPolicy | None, publisher: StreamPublisher
) -> tuple[list[float], list[Arrival]]:
    losses: list[float] = []
    arrivals: list[Arrival] = []
    try:
        for progress in run:
            worker.check()
            losses += [progress.loss] if progress.loss is not None else []
            arrivals += progress.arrivals
            view.show(progress)
            if policy is not None:
                policy.publish_when_due(progress.step, publisher)
    finally:
        view.close()
    return losses, arrivals


def _view(options: DemoOptions, console: Console) -> View:
    if options.headless or not console.is_terminal:
        return PlainView(console, options.steps)
    return LiveView(console, options.steps)


def _worker_environment(url: str, secret: str, scratch: Path, seed: int, web_port: int) -> dict[str, str]:
    return {
        "TAMIYO_WEB_PORT": str(web_port),
        "TAMIYO_REDIS_URL": url,
        "TAMIYO_SIGNING_KID": KEY_ID,
        "TAMIYO_SIGNING_SECRET": secret,
        "TAMIYO_VAR_DIR": str(scratch / "var"),
        "TAMIYO_DEVICE": "cpu",
        "TAMIYO_THREADS": "1",
        "TAMIYO_MODEL_SEED": str(seed),
        **_RISK_SETTINGS,
    }


def _report(
    options: DemoOptions,
    account: Audit,
    losses: list[float],
    arrivals: list[Arrival],
    *,
    worker_status: int | None,
) -> dict[str, Any]:
    refusals = Counter(arrival.refusal for arrival in arrivals if arrival.refusal)
    return {
        "without": sorted(options.without),
        "steps": options.steps,
        "steps_published": account.published,
        "decisions_received": len(arrivals),
        "decided": account.decided,
        "superseded": account.superseded,
        "duplicates": account.duplicates,
        "missing": account.missing,
        "latency_ms": {"p50": account.latency_ms(50), "p95": account.latency_ms(95)},
        "layers": account.layers,
        "edges": account.edges,
        "feature_coverage": account.feature_coverage,
        "mandatory_coverage": account.mandatory_coverage,
        "incomplete_features": account.incomplete_features,
        "safety_sheets": account.safety_sheets,
        "kernels": account.kernels,
        "seeds": account.seeds,
        "commands_by_type": account.commands_by_type,
        "commands_applied": len(arrivals) - refusals.total(),
        "commands_refused": dict(refusals),
        "initial_loss": fmean(losses[:LOSS_WINDOW]) if losses else None,
        "final_loss": fmean(losses[-LOSS_WINDOW:]) if losses else None,
        "policy_versions": account.policy_versions,
        "worker_exit_status": worker_status,
    }


def _summary(report: dict[str, Any]) -> Table:
    table = Table(title="the run, from its streams", show_header=False, title_justify="left")
    latency = report["latency_ms"]
    rows = (
        ("steps published", report["steps_published"]),
        ("decided / superseded", f"{report['decided']} / {report['superseded']}"),
        ("missing / duplicates", f"{report['missing']} / {report['duplicates']}"),
        ("commands", ", ".join(f"{count} {name}" for name, count in report["commands_by_type"].items()) or "none"),
        ("state to command, p50 / p95", f"{_ms(latency['p50'])} / {_ms(latency['p95'])} ms"),
        ("blueprint", f"{report['layers']} layers, {report['edges']} data-flow edges"),
        ("kernels / safety sheets", f"{report['kernels']} / {report['safety_sheets']}"),
        ("seeds", "; ".join(f"{name} {_life(seed)}" for name, seed in report["seeds"].items()) or "none"),
        ("policies", "; ".join(_policy(found) for found in report["policy_versions"]) or "none"),
        ("feature coverage, all / mandatory", f"{report['feature_coverage']} / {report['mandatory_coverage']}"),
        ("loss", f"{report['initial_loss']:.3f} → {report['final_loss']:.3f}" if report["initial_loss"] else "–"),
    )
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def _policy(found: dict[str, Any]) -> str:
    return f"{found['version']} {found['digest'][:8]} from step {found['from_step']}"


def _life(seed: dict[str, Any]) -> str:
    kernel = f" ({seed['blueprint']}, α {seed['alpha']:.2f})" if seed["blueprint"] else ""
    return f"{seed['stages'][-1].lower()}{kernel}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


@contextmanager
def _report_file(target: Path | None) -> Iterator[TextIO]:
    """Open where the report goes before anything is started: no run may end in a path that cannot be written."""
    if target is None:
        with io.StringIO() as nowhere:
            yield nowhere
    elif str(target) == "-":
        yield sys.stdout
    else:
        with target.open("w", encoding="utf-8") as file:
            yield file


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C: the worker and Redis are stopped before we end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
