"""Shows a benchmark's figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(report: dict[str, Any], target: Path | None) -> None:
    """Show ``report`` as a table on stderr and write it as JSON to ``target`` (``-`` = stdout)."""
    table = Table(show_header=False)
    for name, value in report.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console(stderr=True).print(table)
    text = json.dumps(report, indent=2) + "\n"
    if target is not None and str(target) == "-":
        sys.stdout.write(text)
    elif target is not None:
        target.write_text(text, encoding="utf-8")
