"""``tamiyo-stream check``: is everything there that the worker needs? Each line ok, or what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis
from rich.console import Console

from schemas.catalogue import Stream
from schemas.partitions import ORDERED
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import RedisUrlInvalid, advice_for, open_blocking_client

#: Distribution -> module whose import proves that it works.
LIBRARIES = {
    "torch": "torch",
    "torch-geometric": "torch_geometric.nn",
    "torch-scatter": "torch_scatter",
    "redis": "redis",
    "hiredis": "hiredis",
    "msgpack": "msgpack",
    "msgspec": "msgspec",
    "anyio": "anyio",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check; ``fix`` is empty where all is well."""

    subject: str
    detail: str
    fix: str = ""


def run_checks(settings: Settings, console: Console | None = None) -> int:
    """Print every finding and return the exit status: 0 when nothing needs fixing."""
    console = console or Console()
    failed = 0
    for check in (_libraries, _var_dir, _signing, _redis, _model):
        for finding in check(settings):
            failed += bool(finding.fix)
            mark = "[red]fix[/]" if finding.fix else "[green]ok [/]"
            console.print(f"{mark} {finding.subject:<28} {finding.detail}", highlight=False, soft_wrap=True)
            if finding.fix:
                console.print(f"    → {finding.fix}", highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0


def _libraries(_settings: Settings) -> Iterator[Finding]:
    for distribution, module in LIBRARIES.items():
        try:
            importlib.import_module(module)
            yield Finding(distribution, importlib.metadata.version(distribution))
        except (ImportError, OSError) as error:
            yield Finding(distribution, f"cannot be imported: {error}", "run `make setup`")


def _var_dir(settings: Settings) -> Iterator[Finding]:
    directory = settings.var_dir
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Finding("var_dir", str(directory))
    else:
        yield Finding(
            "var_dir",
            f"{existing} is not writable",
            "give the worker write access, or set TAMIYO_VAR_DIR; until then registries live in memory only",
        )


def _signing(settings: Settings) -> Iterator[Finding]:
    if settings.keyring is not None:
        yield Finding("signing", f"on, key id {settings.keyring.signing_kid}")
    else:
        yield Finding("signing", "off: entries are neither verified nor signed (set TAMIYO_SIGNING_SECRET_FILE)")


def _redis(settings: Settings) -> Iterator[Finding]:
    try:
        client = open_blocking_client(settings)
    except RedisUrlInvalid as error:
        yield Finding("redis", str(error), "set TAMIYO_REDIS_URL to redis://, rediss:// or unix://")
        return
    with client:
        try:
            version = dict(client.info("server"))["redis_version"]
            yield Finding("redis", f"{version} answers")
            yield from _streams(settings, client)
        except (redis.RedisError, OSError) as error:
            yield Finding("redis", str(error), advice_for(error))


def _streams(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    for stream in Stream:
        partitions = range(settings.partitions) if stream in ORDERED else range(1)
        for key in (settings.key(stream, number) for number in partitions):
            kind = _text(client.type(key))
            if kind not in {"stream", "none"}:
                fix = "another program uses this key; rename the stream in TAMIYO_STREAM_NAMES"
                yield Finding(key, f"is a {kind}, not a stream", fix)
            elif kind == "none":
                yield Finding(key, "not there yet; it comes with its first entry")
            else:
                yield Finding(key, _describe(client, key, settings.group if stream in ORDERED else ""))


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


def _describe(client: redis.Redis, key: str, group: str) -> str:
    entries = f"{client.xlen(key)} entries"
    if not group:
        return entries
    groups = {info["name"].decode(): info for info in client.xinfo_groups(key)}
    found = groups.get(group)
    return f"{entries}, group {group}: " + (
        f"{found['pending']} pending" if found else "made when the worker starts"
    )


def _model(settings: Settings) -> Iterator[Finding]:
    from tamiyo_stream.worker.service import build_engine  # noqa: PLC0415 - loads torch

    def answer() -> str:
        engine = build_engine(settings)
        engine.warm_up()
        return f"{engine.policy_version} {engine.policy_digest[:12]} answers on {engine.device}"

    yield _attempt("model", answer, "set TAMIYO_DEVICE to cpu or to a device that exists")


def _attempt(subject: str, action: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(subject, action())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Finding(subject, repr(error), fix)
