"""Registries: stable numbers, files that are never half written, and honest failures."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.enums import CompileStatus, HazardBand, SeedLifecycleStage
from tamiyo_stream.graph.features import NODES
from tamiyo_stream.graph.registries import (
    CAPACITIES,
    Registries,
    Registry,
    RegistryCorrupt,
    RegistryRenumbered,
    RegistryWriteFailed,
)

keys = st.lists(st.text(min_size=1, max_size=12), max_size=40)


def test_indices_run_from_one_in_first_seen_order():
    registry = Registry("layer_type", 1024)
    assert [registry.index(key) for key in ("linear", "conv2d", "linear", "gelu")] == [1, 2, 1, 3]


def test_empty_key_is_zero_and_not_stored():
    registry = Registry("layer_type", 1024)
    assert registry.index("") == 0
    assert len(registry) == 0


@given(keys)
def test_lookups_are_stable_and_within_capacity(names):
    registry = Registry("seed", 16)
    first = [registry.index(name) for name in names]
    assert [registry.index(name) for name in names] == first
    assert all(1 <= index < 16 for index in first)
    assert len(registry) < 16


def test_overflow_hashes_the_same_in_every_process():
    code = (
        "from tamiyo_stream.graph.registries import Registry\n"
        "r = Registry('seed', 8, {str(i): i for i in range(1, 8)})\n"
        "print([r.index(f'new{i}') for i in range(20)])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    registry = Registry("seed", 8, {str(i): i for i in range(1, 8)})
    assert seen == {f"{[registry.index(f'new{i}') for i in range(20)]}\n"}
    assert len(registry) == 7


def test_preseeded_vocabularies_have_their_fixed_numbers():
    registries = Registries()
    optimizers = ("sgd", "adam", "adamw", "rmsprop", "adagrad")
    schedules = ("linear", "cosine", "warmup_hold", "sigmoid")
    assert [registries.index("optimizer_family", name) for name in optimizers] == [1, 2, 3, 4, 5]
    assert [registries.index("schedule", name) for name in schedules] == [1, 2, 3, 4]
    assert registries.index("lifecycle_stage", "BLENDING") == SeedLifecycleStage.BLENDING
    assert registries.index("hazard_class", "CRITICAL") == HazardBand.CRITICAL


def test_capacity_never_exceeds_a_channels_embedding_table():
    for schema in NODES.values():
        for channel in schema.categories:
            assert CAPACITIES[channel.vocabulary] <= channel.capacity


def test_digest_is_sha256_of_the_compact_sorted_list():
    registry = Registry("layer_type", 1024, {"b": 1, "a": 2})
    assert registry.digest() == hashlib.sha256(b'[["a",2],["b",1]]').hexdigest()


@given(keys, keys)
def test_growing_keeps_the_older_registry_a_prefix(before, after):
    older = Registry("layer_type", 1024)
    for key in before:
        older.index(key)
    newer = Registry("layer_type", 1024, older.entries)
    for key in after:
        newer.index(key)
    assert older.is_prefix_of(newer)
    assert newer.is_prefix_of(older) == (newer.digest() == older.digest())


def test_renumbering_is_no_prefix():
    older = Registry("layer_type", 1024, {"linear": 1, "conv2d": 2})
    assert not older.is_prefix_of({"linear": 2, "conv2d": 1, "gelu": 3})


def test_flush_and_reload_keep_every_index(tmp_path):
    registries = Registries(tmp_path / "tamiyo")
    numbers = {name: registries.index("layer_type", name) for name in ("linear", "conv2d", "größe")}
    registries.index("seed", "seed0")
    assert registries.flush() == 2
    again = Registries(tmp_path / "tamiyo")
    assert {name: again.index("layer_type", name) for name in numbers} == numbers
    assert again.digests() == registries.digests()
    assert json.loads((tmp_path / "tamiyo" / "seed_registry.json").read_text()) == {"seed0": 1}


def test_flush_writes_only_what_changed_and_leaves_no_other_file(tmp_path):
    registries = Registries(tmp_path)
    assert registries.flush() == 0
    registries.index("layer_type", "linear")
    assert registries.flush() == 1
    assert registries.flush() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["layer_type_registry.json"]


def test_memory_only_registries_flush_nothing():
    registries = Registries()
    registries.index("seed", "seed0")
    assert registries.flush() == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"a": "1"}',
        '{"a": 0}',
        '{"a": 1.0}',
        '{"a": true}',
        '{"a": 1, "b": 1}',
        '{"a": 999999}',
        '{"": 1}',
    ],
)
def test_corrupt_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "layer_type_registry.json"
    path.write_text(text)
    with pytest.raises(RegistryCorrupt, match=r"layer_type_registry\.json") as caught:
        Registries(tmp_path)
    assert caught.value.path == path
    assert path.read_text() == text


def test_file_that_renumbers_fixed_categories_is_corrupt(tmp_path):
    (tmp_path / "optimizer_family_registry.json").write_text('{"adam": 1, "sgd": 2}')
    with pytest.raises(RegistryCorrupt, match="renumbers"):
        Registries(tmp_path)


def test_a_file_of_an_older_release_takes_the_fixed_categories_that_are_new(tmp_path):
    path = tmp_path / "compile_status_registry.json"
    path.write_text('{"COMPILED": 1, "EAGER_FALLBACK": 2, "FAILED": 3}')
    registries = Registries(tmp_path)
    assert registries["compile_status"].entries["EAGER"] == CompileStatus.EAGER
    assert registries.flush() == 1
    assert json.loads(path.read_text())["EAGER"] == 4


def test_a_fixed_number_that_another_key_took_is_corrupt(tmp_path):
    (tmp_path / "optimizer_family_registry.json").write_text('{"sgd": 1, "adam": 2, "lion": 3}')
    with pytest.raises(RegistryCorrupt, match="renumbers"):
        Registries(tmp_path)


def test_unwritable_directory_keeps_working_in_memory_and_says_so(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    registries = Registries(tmp_path / "new")
    registries._directory = blocked / "below"
    assert registries.index("layer_type", "linear") == 1
    with pytest.raises(RegistryWriteFailed, match=r"ENOTDIR.*writable") as caught:
        registries.flush()
    assert caught.value.path.name == "layer_type_registry.json"
    assert registries.index("layer_type", "linear") == 1
    registries._directory = tmp_path / "new"
    assert registries.flush() == 1


def test_adopt_takes_a_longer_snapshot_of_the_same_line():
    registry = Registry("layer_type", 1024, {"linear": 1})
    registry.adopt({"linear": 1, "conv2d": 2})
    assert registry.index("conv2d") == 2
    assert registry.changed


@pytest.mark.parametrize("entries", [{}, {"linear": 2}, {"linear": 1, "gelu": 1}, {"linear": 1, "gelu": 5000}])
def test_adopt_refuses_renumbering_and_changes_nothing(entries):
    registry = Registry("layer_type", 1024, {"linear": 1})
    with pytest.raises(RegistryRenumbered, match="layer_type"):
        registry.adopt(entries)
    assert registry.entries == {"linear": 1}


def test_failed_file_does_not_stop_the_others(tmp_path):
    registries = Registries(tmp_path)
    (tmp_path / "layer_type_registry.json").mkdir()
    registries.index("layer_type", "linear")
    registries.index("seed", "seed0")
    with pytest.raises(RegistryWriteFailed, match="layer_type"):
        registries.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer_type_registry.json", "seed_registry.json"]
    (tmp_path / "layer_type_registry.json").rmdir()
    assert registries.flush() == 1


def test_a_full_disk_is_told_from_a_directory_that_is_not_writable() -> None:
    full = RegistryWriteFailed(Path("r.json"), OSError(errno.ENOSPC, "No space left on device"))
    assert "ENOSPC); free space" in str(full)
    denied = RegistryWriteFailed(Path("r.json"), PermissionError(errno.EACCES, "Permission denied"))
    assert "EACCES); make its directory writable" in str(denied)
