"""Connections to the bus, and what to do while it is away (design §10).

Any Redis error is an outage: keep the state, wait with jitter, try again, at most five times a second.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import anyio
import redis
import structlog
from redis import DriverInfo
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry as BlockingRetry

from tamiyo_stream.settings import Settings

T = TypeVar("T")
C = TypeVar("C")

CONNECT_TIMEOUT_S = 2.0
#: Above every BLOCK: a read that got no answer by then sits on a dead connection.
ANSWER_MARGIN_S = 5.0
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0

_DRIVER = DriverInfo(name="redis-py", lib_version=redis.__version__)

log = structlog.get_logger("tamiyo.bus")


class RedisUrlInvalid(ValueError):
    """The Redis URL cannot be read; the text says what is accepted."""


def open_client(settings: Settings) -> Redis:
    """Return a client with a pool of its own; nothing is connected yet.

    It raises at the first failure: callers retry in :func:`through_outages`, knowing what they repeat.

    Raises:
        RedisUrlInvalid: ``redis_url`` cannot be read.
    """
    return _from_url(Redis, settings, retry=Retry(NoBackoff(), 0))


def open_blocking_client(settings: Settings) -> redis.Redis:
    """Return a client for commands of an operator, which fail at once where Redis is away.

    Raises:
        RedisUrlInvalid: ``redis_url`` cannot be read.
    """
    return _from_url(redis.Redis, settings, retry=BlockingRetry(NoBackoff(), 0))


def _from_url(client: type[C], settings: Settings, *, retry: Any) -> C:
    try:
        return cast("C", cast("Any", client).from_url(settings.redis_url, retry=retry, **_options(settings)))
    except ValueError as error:
        # The URL itself stays out of the text: it may hold the password.
        raise RedisUrlInvalid(f"TAMIYO_REDIS_URL: {error}; use a redis://, rediss:// or unix:// URL") from None


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": settings.block_ms / 1000 + ANSWER_MARGIN_S,
        "health_check_interval": 30,
        "client_name": f"tamiyo-{settings.worker_id}",
        # Given here, or redis-py looks its own version up on disk for every connection, in the event loop.
        "driver_info": _DRIVER,
    }
    if settings.redis_username:
        options["username"] = settings.redis_username
    if settings.redis_password is not None:
        options["password"] = settings.redis_password.get_secret_value()
    if settings.redis_url.startswith("rediss://"):
        files = {
            "ssl_ca_certs": settings.redis_ca_file,
            "ssl_certfile": settings.redis_cert_file,
            "ssl_keyfile": settings.redis_key_file,
        }
        options |= {"ssl_cert_reqs": "required", **{name: str(path) for name, path in files.items() if path}}
    return options


#: Told of every failed attempt (the error) and of the first success after one (None), in this context.
BUS_LISTENER: ContextVar[Callable[[Exception | None], None]] = ContextVar("BUS_LISTENER", default=lambda _: None)


async def through_outages(what: str, operation: Callable[[], Awaitable[T]]) -> T:
    """Return the result of ``operation``, tried again while Redis is away.

    One log line says that an outage began, one that it is over. ``operation`` must be safe to repeat when its
    outcome is unknown.
    """
    failures = 0
    while True:
        try:
            result = await operation()
        except (RedisError, OSError) as error:
            if failures == 0:
                log.warning("redis_unavailable", operation=what, error=str(error), advice=advice_for(error))
            ceiling = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures, 10))
            failures += 1
            BUS_LISTENER.get()(error)
            # Never below the first delay (five tries a second at most), random to keep workers out of step.
            await anyio.sleep(random.uniform(FIRST_DELAY_S, max(ceiling, FIRST_DELAY_S * 1.5)))  # noqa: S311
        else:
            if failures:
                BUS_LISTENER.get()(None)
                log.info("redis_back", operation=what, failures=failures)
            return result


def advice_for(error: Exception) -> str:
    """Return what an operator should do about ``error``."""
    if isinstance(error, AuthenticationError):
        return "set TAMIYO_REDIS_USERNAME and TAMIYO_REDIS_PASSWORD (or TAMIYO_REDIS_PASSWORD_FILE)"
    if isinstance(error, NoPermissionError):
        return "the ACL user lacks a permission; grant the command and key named in the error"
    return "check that Redis runs and that TAMIYO_REDIS_URL points at it"
