"""Every page of the documentation that is generated from declarations, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from schemas.asyncapi import render_asyncapi
from tamiyo_stream.graph.reference import render_features, render_relations
from tamiyo_stream.hub import taxonomy
from tamiyo_stream.policy.reference import render_risk_rules
from tamiyo_stream.settings import render_reference
from tamiyo_stream.upstream.kasmina.reference import render_alpha_curves, render_blending

#: Path below ``docs/`` -> what renders it.
PAGES: dict[str, Callable[[], str]] = {
    "asyncapi.yaml": render_asyncapi,
    "reference/configuration.md": render_reference,
    "reference/features.md": render_features,
    "reference/relations.md": render_relations,
    "reference/risk-rules.md": render_risk_rules,
    "reference/telemetry.md": taxonomy.render_reference,
    "reference/blending.md": render_blending,
    "reference/alpha-curves.svg": render_alpha_curves,
}


def write_pages(directory: Path) -> list[Path]:
    """Write every page below ``directory``; return the paths that changed."""
    changed = []
    for name, render in PAGES.items():
        path, text = directory / name, render()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
