"""Who may see the panel: everybody on this machine; beyond it, whoever has the token.

Probes and ``/metrics`` stay open, as Kubernetes and Prometheus expect them.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from starlette.requests import HTTPConnection

COOKIE = "tamiyo_panel"
#: Shorter tokens can be guessed.
MIN_TOKEN = 16
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class TokenRequired(ValueError):
    """The panel shall be bound beyond loopback and has no usable token."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``."""
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_token(host: str, token: str) -> None:
    """Check that a panel on ``host`` is protected where it has to be.

    Raises:
        TokenRequired: naming the setting and the fix.
    """
    if token and len(token) < MIN_TOKEN:
        raise TokenRequired(f"the panel's token has {len(token)} characters; give at least {MIN_TOKEN}")
    if not token and not is_loopback(host):
        raise TokenRequired(f"the panel on {host} is reachable from other machines; set a token or bind 127.0.0.1")


@dataclass(frozen=True, slots=True)
class Access:
    """Decides on requests. ``token`` empty: this machine only, and by its own names only."""

    token: str = ""

    @property
    def cookie(self) -> str:
        """What the browser keeps instead of the token."""
        return hmac.new(self.token.encode(), b"panel", hashlib.sha256).hexdigest()

    def allows(self, request: HTTPConnection) -> bool:
        """Return whether ``request`` may see the panel."""
        if not self.token:
            # A page elsewhere may point its own name at 127.0.0.1; its requests carry that name.
            return _host_of(request) in _LOCAL_NAMES
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(given):
            return True
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.cookie.encode())

    def knows(self, given: str) -> bool:
        """Return whether ``given`` is the token."""
        return bool(self.token) and hmac.compare_digest(given.encode(), self.token.encode())


def _host_of(request: HTTPConnection) -> str:
    host = request.headers.get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
