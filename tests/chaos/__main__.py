"""``python -m tests.chaos``: break everything there is to break, then prove that no decision was lost or doubled.

Seeded: the same seed injects the same faults in the same order; where in the workers' work they strike depends on
the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.rig import Rig
from tests.chaos.scenarios import SCENARIOS, Result, run_scenario


def main() -> int:
    """Run the scenarios that were asked for; return 0 where all invariants hold."""
    options = _parser().parse_args()
    names = options.scenario or list(SCENARIOS)
    results = []
    with tempfile.TemporaryDirectory(prefix="tamiyo-chaos-") as directory, Rig(Path(directory)) as rig:
        for name in names:
            result = run_scenario(rig, name, options.seed, options.kills if name == "kills" else options.size)
            results.append(result)
            sys.stderr.write(_line(result) + "\n")
    if options.json:
        _write(options.json, options.seed, results)
    return 0 if all(result.holds for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the scenario `kills`")
    parser.add_argument("--size", type=int, default=20, help="faults of every other scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="only this one; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON to FILE (- = stdout)")
    return parser


def _line(result: Result) -> str:
    verdict = "holds" if result.holds else "FAILS"
    return (
        f"{result.scenario:17} {verdict}: {result.faults} faults, {result.published} published, "
        f"{result.decided} decided, {result.superseded} superseded, {result.refused} refused, "
        f"{result.dead_letters} dead letters, {result.lost} lost, {result.doubled} doubled, "
        f"back after {result.recovery_s:.1f} s {result.figures or ''} {result.state_differs or ''}{result.failure}"
    )


def _write(target: str, seed: int, results: list[Result]) -> None:
    text = json.dumps({"seed": seed, "scenarios": [asdict(result) for result in results]}, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
