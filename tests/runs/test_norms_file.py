"""The norms file: what is written is read back, and never half a table."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_stream.runs import norms_file
from tamiyo_stream.runs.norms import PRIORS
from tamiyo_stream.runs.norms_file import (
    MAX_BYTES,
    MAX_RUNS,
    NormsCorrupt,
    NormsWriteFailed,
    read_norms,
    write_norms,
)
from tamiyo_stream.runs.state import EwmaNorm

OLD = {"run-a": {"loss": EwmaNorm(0.8, 0.09, 3)}}
NEW = {"run-b": {"loss": EwmaNorm(0.5, 0.25, 7), "gradient_norm": EwmaNorm(1.0, 1e-6)}, "run-a": {}}

_norms = st.dictionaries(
    st.sampled_from(sorted(PRIORS)),
    st.builds(
        EwmaNorm,
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(min_value=1e-6, allow_infinity=False),
        st.integers(0, 2**53),
    ),
)


@pytest.fixture
def path(tmp_path) -> Path:
    """Where the file is, in a directory that does not exist yet."""
    return tmp_path / "tamiyo" / "gnn_norms.json"


@given(st.dictionaries(st.text(min_size=1, max_size=8), _norms, max_size=3))
def test_what_is_written_is_read_back_in_order(tmp_path_factory, runs):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    assert write_norms(path, runs) == len(runs)
    assert list(read_norms(path).items()) == list(runs.items())


def test_no_file_means_no_statistics(path):
    assert read_norms(path) == {}
    assert read_norms(Path(__file__) / "below-a-file.json") == {}


def test_writing_replaces_and_leaves_no_other_file(path):
    write_norms(path, OLD)
    write_norms(path, NEW)
    assert read_norms(path) == NEW
    assert [file.name for file in path.parent.iterdir()] == ["gnn_norms.json"]


def test_the_format_is_the_documented_one(path):
    write_norms(path, OLD)
    content = json.loads(path.read_text())
    assert content["version"] == 1
    assert content["runs"] == {"run-a": {"loss": {"mean": 0.8, "var": 0.09, "count": 3}}}
    assert sorted(content) == ["digest", "runs", "version"]


def test_only_the_newest_runs_are_kept(path):
    runs = {f"run-{i}": OLD["run-a"] for i in range(MAX_RUNS + 2)}
    assert write_norms(path, runs) == MAX_RUNS
    assert list(read_norms(path)) == list(runs)[:MAX_RUNS]


def test_a_full_table_of_the_longest_ids_fits_the_size_that_is_read(path):
    every = {name: EwmaNorm(-1.2345678901234567e-300, 1.2345678901234567e-300, 2**53) for name in PRIORS}
    runs = {f"{'é' * 196}{i:04}": every for i in range(MAX_RUNS)}
    write_norms(path, runs)
    assert path.stat().st_size < MAX_BYTES
    assert read_norms(path) == runs


def test_a_file_cut_off_anywhere_is_corrupt_never_half_a_table(path):
    write_norms(path, NEW)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NormsCorrupt, match=r"gnn_norms\.json"):
            read_norms(path)


def test_another_writer_may_order_and_indent_as_it_likes(path):
    write_norms(path, NEW)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=2))
    assert read_norms(path) == NEW


def test_a_changed_digit_is_corrupt(path):
    write_norms(path, OLD)
    path.write_text(path.read_text().replace("0.09", "0.08"))
    with pytest.raises(NormsCorrupt, match=r"gnn_norms\.json: digest"):
        read_norms(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "version 1"),
        ('{"version": 2, "runs": {}}', "version 1"),
        ('{"version": 1}', "runs"),
        ('{"version": 1, "runs": []}', "runs"),
        ('{"version": 1, "runs": {}, "digest": null}', "digest"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_norms_file_says_why_and_what_to_do(path, text, named):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(NormsCorrupt, match=rf"{named}.*delete it"):
        read_norms(path)


def test_statistics_of_a_run_are_checked_and_the_run_is_named(path):
    write_norms(path, {"run-a": {"loss": EwmaNorm(1.0, 0.0)}})
    with pytest.raises(NormsCorrupt, match=r"runs\.run-a\.loss\.var is 0\.0"):
        read_norms(path)


def test_more_runs_than_are_ever_written_are_refused(path):
    path.parent.mkdir()
    runs = {f"run-{i}": {} for i in range(MAX_RUNS + 1)}
    path.write_text(json.dumps({"version": 1, "runs": runs, "digest": norms_file._digest_of(runs)}))
    with pytest.raises(NormsCorrupt, match="at most 1024 runs"):
        read_norms(path)


def test_an_oversized_file_is_refused(path):
    path.parent.mkdir()
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(NormsCorrupt, match=f"larger than {MAX_BYTES}"):
        read_norms(path)


def test_a_path_that_cannot_be_read_is_named(path):
    path.mkdir(parents=True)
    with pytest.raises(NormsCorrupt, match=r"gnn_norms\.json cannot be read"):
        read_norms(path)


def test_more_than_may_be_read_is_not_written(path):
    write_norms(path, OLD)
    with pytest.raises(NormsWriteFailed, match="EFBIG"):
        write_norms(path, {"x" * MAX_BYTES: {}})
    assert read_norms(path) == OLD


def test_whoever_may_read_new_files_may_read_this_one(path):
    before = os.umask(0o022)
    try:
        write_norms(path, OLD)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("module", "call", "code", "fix"),
    [
        (os, "fsync", errno.ENOSPC, "free space"),
        (Path, "mkdir", errno.EROFS, "writable"),
        (Path, "replace", errno.EACCES, "writable"),
    ],
)
def test_a_disk_that_refuses_is_named_and_the_old_content_stays(path, monkeypatch, module, call, code, fix):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    write_norms(path, OLD)
    monkeypatch.setattr(module, call, refuse)
    with pytest.raises(NormsWriteFailed, match=rf"gnn_norms\.json \({errno.errorcode[code]}\); .*{fix}") as caught:
        write_norms(path, NEW)
    assert (caught.value.path, caught.value.errno) == (path, code)
    assert read_norms(path) == OLD
    assert [file.name for file in path.parent.iterdir()] == ["gnn_norms.json"]


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NormsWriteFailed, match="ENOTDIR"):
        write_norms(tmp_path / "file" / "below" / "gnn_norms.json", OLD)
