"""Benchmarks that need no extra tool: each returns its figures, ratios measured side by side in one run."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def probe_overhead(steps: int) -> dict[str, Any]:
    """Measure what the Tolaria probe costs a step of the demo's model, against the same steps without it."""
    import torch  # noqa: PLC0415

    from tamiyo_stream.demo.training import CharacterTraining  # noqa: PLC0415 - loads torch
    from tamiyo_stream.upstream.tolaria.overhead import measure_overhead  # noqa: PLC0415

    torch.set_num_threads(1)  # as in the demo: the other core is the worker's
    return asdict(measure_overhead(CharacterTraining, steps))


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
