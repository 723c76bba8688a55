"""The upstream's Redis client, and what it does while Redis is away: back off with jitter, say so once, go on.

Used from background threads of somebody else's training process, hence the standard library's logging.
"""

from __future__ import annotations

import logging
import random

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger("tamiyo.probe")

CONNECT_TIMEOUT_S = 2.0
#: First and longest wait between attempts. The longest bounds how late a recovered Redis is noticed.
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 2.0

#: What Redis may answer, and what to do about it. The first matching row counts.
ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (
        redis.AuthenticationError,
        "user or password is wrong or missing; put them into redis_url as redis://user:password@host:port/0",
    ),
    (
        redis.exceptions.NoPermissionError,
        "the ACL user may not use this stream; grant it +xadd, +xread, +time and ~oona.*",
    ),
    (redis.ReadOnlyError, "this is a replica; point redis_url at the primary"),
    (redis.exceptions.OutOfMemoryError, "Redis is out of memory; trim streams or raise maxmemory"),
    (redis.TimeoutError, "no answer in time; check that the host is reachable"),
    (redis.ConnectionError, "cannot connect; check that Redis runs and that redis_url is right"),
    (OSError, "cannot connect; check host name and network"),
)
#: Failures that waiting alone does not cure: logged once in a process's life, not once per outage.
_CONFIGURATION = (redis.AuthenticationError, redis.exceptions.NoPermissionError)


class RedisUrlInvalid(ValueError):
    """The Redis URL cannot be read; the text says what is accepted."""


def open_client(redis_url: str, *, answer_timeout_s: float) -> redis.Redis:
    """Return a client that raises at the first failure: the caller retries, in order and with its own back-off.

    Nothing is connected yet. ``answer_timeout_s`` must exceed the longest BLOCK that the client is used for.

    Raises:
        RedisUrlInvalid: not a redis://, rediss:// or unix:// URL.
    """
    try:
        return redis.Redis.from_url(
            redis_url,
            socket_timeout=answer_timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        # The URL itself stays out of the text: it may hold the password.
        raise RedisUrlInvalid(f"redis_url is unusable ({error}); use redis://host:port/0") from None


def advice_for(error: Exception) -> str:
    """Return the operator's next step for ``error``, or an empty string."""
    return next((advice for kind, advice in ADVICE if isinstance(error, kind)), "")


class Outage:
    """Counts failures of one connection, chooses the waits and writes one log line per outage.

    ``what`` names the connection in the log. Used by one thread; the counters may be read by any.
    """

    def __init__(self, what: str) -> None:
        self.failures = 0
        self.connected = False
        self.last_error: str | None = None
        self._what = what
        self._in_a_row = 0
        self._explained: set[type[Exception]] = set()

    def failed(self, error: Exception) -> float:
        """Record a failure and return how long to wait, in seconds."""
        self.failures += 1
        self.connected = False
        self.last_error = f"{type(error).__name__}: {error}"
        self._report(error)
        ceiling = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(self._in_a_row, 10))
        self._in_a_row += 1
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, not a secret

    def succeeded(self) -> None:
        """Record that Redis answered."""
        if self._in_a_row:
            log.info("%s: Redis answers again after %d failed attempts", self._what, self._in_a_row)
        self._in_a_row = 0
        self.connected = True

    def _report(self, error: Exception) -> None:
        configuration = isinstance(error, _CONFIGURATION)
        if (configuration and type(error) in self._explained) or (not configuration and self._in_a_row):
            return
        self._explained.add(type(error))
        log.warning("%s: %s (%s); training goes on, retrying", self._what, self.last_error, advice_for(error))
