"""The panel's files, read once and compressed once."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = ("index.html", "login.html", "panel.css", "panel.js", "model.js", "icon.svg")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, plain and compressed; ``tag`` changes with its content."""

    name: str
    media_type: str
    plain: bytes
    compressed: bytes
    tag: str


def load_assets() -> dict[str, Asset]:
    """Return the panel's files by name."""
    return {name: _load(name) for name in FILES}


def _load(name: str) -> Asset:
    plain = (files("tamiyo_stream.hub.panel") / name).read_bytes()
    return Asset(
        name=name,
        media_type=MEDIA_TYPES[name.rpartition(".")[2]],
        plain=plain,
        compressed=gzip.compress(plain, mtime=0),
        tag=f'"{hashlib.sha256(plain).hexdigest()[:16]}"',
    )
