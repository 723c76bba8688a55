"""``tamiyo-stream bench page``: every benchmark, each in a process of its own, and the page that shows them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamiyo_stream.bench.performance_page import performance_page


class BenchmarkFailed(RuntimeError):
    """A benchmark ended with an error; the text holds its command and the end of what it said."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run of ``bench model``; ``passes`` keeps the large ones within minutes."""

    nodes: int
    edges: int
    precision: str
    threads: int = 1
    batch: int = 1
    passes: int = 200

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command's arguments."""
        given = {
            "nodes": self.nodes,
            "edges": self.edges,
            "precision": self.precision,
            "threads": self.threads,
            "batch": self.batch,
            "passes": self.passes,
        }
        return ("model", *(text for name, value in given.items() for text in (f"--{name}", str(value))))


#: Sizes x precisions x threads x batch. The last size is the design's target.
CASES: tuple[Case, ...] = (
    *(Case(1_000, 5_000, precision) for precision in ("fp32", "bf16")),
    *(
        Case(10_000, 50_000, precision, threads, passes=100)
        for precision in ("fp32", "bf16")
        for threads in (1, 2)
    ),
    *(Case(1_000, 5_000, precision, batch=10, passes=40) for precision in ("fp32", "bf16")),
    Case(100_000, 500_000, "bf16", 2, passes=4),
)
#: The other benchmarks: heading, what the figures are about, arguments.
OTHERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "The graph of a step",
        "Steps of a known structure (`build`), structures (`topology`), packets, a hundred runs. Times in ms.",
        ("graph", "--passes", "400"),
    ),
    (
        "The decision",
        "Everything after the network's answer: choosing, risk rules, settling, signing, encoding. Times in ms.",
        ("decision", "--passes", "400"),
    ),
    (
        "The probe in a training process",
        "Steps of the demo's model with and without the Tolaria probe, in turns.",
        ("probe", "--steps", "200"),
    ),
)


def measure_all(say: Any = print) -> str:
    """Run every benchmark and return the page.

    Raises:
        BenchmarkFailed: one of them ended with an error.
    """
    results = [_measured(case.arguments, say) for case in CASES]
    others = [_section(title, text, arguments, _measured(arguments, say)) for title, text, arguments in OTHERS]
    return performance_page(results) + "".join(others)


def _measured(arguments: Sequence[str], say: Any) -> dict[str, Any]:
    command = ["-m", "tamiyo_stream", "bench", *arguments]
    say(" ".join(["tamiyo-stream", "bench", *arguments]))
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "figures.json"
        done = subprocess.run(  # noqa: S603 - our own command and the numbers of our own table
            [sys.executable, *command, "--json", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-800:]}")
        figures: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return figures


def _section(title: str, text: str, arguments: Sequence[str], figures: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in figures.items())
    command = " ".join(["tamiyo-stream", "bench", *arguments])
    return f"\n## {title}\n\n{text} `{command}`\n\n| figure | value |\n|---|---|\n{rows}\n"


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
