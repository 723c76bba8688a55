"""Imports run one way (design §3): no folder imports one above itself in the table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
T = "tamiyo_stream."
#: Folder -> first-party packages it may import besides itself. `TOP` is the composition root: everything.
TOP = None
ALLOWED: dict[str, set[str] | None] = {
    "schemas": set(),
    "consumers": {"schemas"},
    "producers": {"schemas"},
    T + "runs": {"schemas"},
    T + "graph": {"schemas", T + "runs"},
    T + "model": {T + "graph", "schemas"},
    T + "inference": {T + "graph", T + "model", "schemas"},
    T + "policy": {"schemas", T + "runs"},
    T + "checkpoints": {"schemas", T + "runs", T + "graph", T + "model", T + "policy"},
    T + "hub": {"schemas"},
    T + "upstream": {"schemas", "producers"},
    T + "worker": TOP,
    T + "demo": TOP,
    T + "settings": {"schemas", T + "policy"},
    T + "cli": TOP,
    T + "check": TOP,
    T + "dead_letters": TOP,
    T + "operator": TOP,
    T + "reference": TOP,
    T + "bench": TOP,
    T + "replay": TOP,
    T + "__main__": TOP,
    T + "__init__": set(),
}
#: The network sees the graph's tables and structures, never its builder or the wire's machinery.
TABLES = {
    T + "graph.features",
    T + "graph.relations",
    T + "graph.structures",
    "schemas.enums",
}
#: What a GPU machine without the rest of the platform has; anyio is for the stage alone.
LEAN = {"torch", "torch_geometric", "numpy", "tamiyo_stream", "schemas", "anyio"}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("schemas", "consumers", "producers", "tamiyo_stream"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def folder_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tamiyo_stream" and len(parts) > 1 else parts[0]


def is_ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in {"schemas", "consumers", "producers", "tamiyo_stream"}


def test_every_folder_is_in_the_table() -> None:
    assert {folder_of(module) for module, _ in modules()} == set(ALLOWED)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value).replace(str(ROOT), ""))
def test_no_import_runs_upward(module: str, path: Path) -> None:
    folder = folder_of(module)
    allowed = ALLOWED[folder]
    if allowed is TOP:
        return
    outside = {name for name in imported(path) if is_ours(name) and folder_of(name) != folder}
    assert {name for name in outside if folder_of(name) not in allowed} == set()


@pytest.mark.parametrize("folder", ["model", "inference"])
def test_the_network_imports_only_tables_and_lean_libraries(folder: str) -> None:
    for path in (ROOT / "tamiyo_stream" / folder).glob("*.py"):
        names = set(imported(path))
        beyond = {n for n in names if is_ours(n) and folder_of(n) not in {T + "model", T + "inference"}}
        assert beyond <= TABLES, path
        libraries = {n.split(".")[0] for n in names} - set(sys.stdlib_module_names)
        assert libraries <= LEAN, path
        assert "anyio" not in libraries or path.name == "stage.py"


@pytest.mark.parametrize("stage", ["runs", "graph", "model", "inference", "policy"])
def test_no_bus_io_in_the_pure_stages(stage: str) -> None:
    for path in (ROOT / "tamiyo_stream" / stage).glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {
            "redis",
            "fakeredis",
            "consumers",
            "producers",
        }
