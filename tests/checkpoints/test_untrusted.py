"""Files from an attacker: refused before anything of them is executed or much memory is taken."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tamiyo_stream.checkpoints.refusal import Reason
from tamiyo_stream.checkpoints.tensor_file import MAX_HEADER_BYTES
from tamiyo_stream.checkpoints.torch_archive import MAX_DIRECTORY_BYTES, MAX_PICKLE_BYTES
from tests.checkpoints.hostile import (
    CANARY,
    PICKLES,
    archive_of,
    renamed,
    sample_records,
    text,
    with_pickle,
    with_records,
)
from tests.checkpoints.samples import read, refusal_of, sample_file, sample_state

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00%s%s\x89ccollections\nOrderedDict\n)RtR"


def pickled(elements: bytes, shape: bytes, strides: bytes) -> bytes:
    """Return a pickle of a document and one tensor on record ``data/0``."""
    tensor = TENSOR % (elements, shape, strides)
    return b"\x80\x02}(" + text(b"format") + text(b"x") + text(b"state_dict") + b"}" + text(b"w") + tensor + b"su."


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_does_more_than_hold_data_is_not_executed(name: str) -> None:
    for data in (with_pickle(PICKLES[name]), PICKLES[name]):
        assert refusal_of(data).reason in {Reason.UNSAFE_PICKLE, Reason.NOT_A_CHECKPOINT}
    assert refusal_of(with_pickle(PICKLES[name])).reason is Reason.UNSAFE_PICKLE
    assert not Path(CANARY).exists()


def test_the_pickle_of_the_prototypes_attack_names_what_it_would_have_called() -> None:
    assert "os.system" in str(refusal_of(with_pickle(PICKLES["os.system by GLOBAL and REDUCE"])))


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}}.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02h\x05.",
        b"\x80\x02t.",
        b"\x80\x02(u.",
        b"\x80\x02}(K\x01K\x01u.",
        b"\x80\x02}(Nu.",
        b"\x80\x02Q.",
        b"\x80\x02)Q.",
        b"\x80\x02R.",
        b"\x80\x02Ka.",
        b"\x80\x02\x86.",
        b"\x80\x02cos",
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    ],
)
def test_a_damaged_pickle_is_refused(damaged: bytes) -> None:
    assert refusal_of(with_pickle(damaged)).reason is Reason.NOT_A_CHECKPOINT


def test_a_pickle_of_many_opcodes_is_refused() -> None:
    assert "opcodes" in str(refusal_of(with_pickle(b"\x80\x02" + b"N" * 600_000 + b".")))


def test_a_pickle_as_deep_as_it_is_long_is_refused() -> None:
    state = text(b"state_dict") + b"}" + text(b"w") + (TENSOR % (b"K\x01", b"K\x01\x85", b"K\x01\x85")) + b"s"
    deep = b"\x80\x02}(" + text(b"format") + b"]" * 50_000 + b"a" * 49_999 + state + b"u."
    data = archive_of({"archive/data.pkl": deep, "archive/data/0": bytes(4)})
    assert "nested deeper" in str(refusal_of(data))


@pytest.mark.parametrize("elements", [b"M\x00\x10", b"J\xff\xff\xff\x7f", b"K\x00", b"J\xff\xff\xff\xff"])
def test_a_storage_that_claims_another_size_than_its_record_is_refused(elements: bytes) -> None:
    """Torch believes the claim and reads past the record's end."""
    shape = elements + b"\x85"
    data = archive_of({"archive/data.pkl": pickled(elements, shape, b"K\x01\x85"), "archive/data/0": bytes(16)})
    assert refusal_of(data).reason is Reason.NOT_A_CHECKPOINT


def test_a_tensor_that_is_huge_by_its_strides_is_refused() -> None:
    shape = b"J\x00\x00\x00\x40J\x00\x00\x00\x40\x86"
    data = archive_of(
        {"archive/data.pkl": pickled(b"K\x04", shape, b"K\x00K\x00\x86"), "archive/data/0": bytes(16)}
    )
    assert refusal_of(data).reason is Reason.SHAPES


def test_a_view_is_refused() -> None:
    data = archive_of(
        {
            "archive/data.pkl": pickled(b"K\x04", b"K\x02K\x02\x86", b"K\x01K\x02\x86"),
            "archive/data/0": bytes(16),
        }
    )
    assert refusal_of(data).reason is Reason.SHAPES


def test_a_tensor_that_starts_within_its_record_is_refused() -> None:
    whole = pickled(b"K\x04", b"K\x04\x85", b"K\x01\x85")
    data = archive_of({"archive/data.pkl": whole.replace(b"QK\x00", b"QK\x01"), "archive/data/0": bytes(16)})
    assert refusal_of(data).reason is Reason.SHAPES


def test_a_zip_bomb_is_refused() -> None:
    records = sample_records() | {"archive/data/0": bytes(200 * 1024 * 1024)}
    bomb = archive_of(records, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2 * 1024 * 1024
    assert "compressed" in str(refusal_of(bomb))


def test_a_zip_in_a_zip_is_refused() -> None:
    assert refusal_of(with_records(archive__inner_zip=sample_file(".pt"))).reason is Reason.NOT_A_CHECKPOINT
    assert refusal_of(archive_of({"archive/data.pkl": sample_file(".pt")})).reason is not None


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "archive/../data/0",
        "archive/data/../0",
        "archive\\data",
        "archive/code/a.py",
    ],
)
def test_a_record_of_another_name_is_refused(name: str) -> None:
    assert refusal_of(renamed("archive/data/0", name)).reason is Reason.NOT_A_CHECKPOINT


def test_records_in_two_folders_are_refused() -> None:
    assert "several folders" in str(refusal_of(with_records(other__data__99999=b"")))


def test_records_of_one_name_are_refused() -> None:
    twice = with_records(archive__data__99998=b"", archive__data__99999=b"").replace(b"/99998", b"/99999")
    assert "repeat" in str(refusal_of(twice))


def test_a_zip_of_many_records_is_refused_by_its_end_alone() -> None:
    many = archive_of({f"archive/data/{index}": b"" for index in range(3000)})
    assert "3000 entries" in str(refusal_of(many))


def test_a_huge_zip_directory_is_refused_unread() -> None:
    data = bytearray(archive_of({"archive/data.pkl": b"N."}))
    struct.pack_into("<L", data, len(data) - 22 + 12, MAX_DIRECTORY_BYTES + 1)
    assert f"1 entries in {MAX_DIRECTORY_BYTES + 1} bytes" in str(refusal_of(bytes(data)))


def test_a_zip_with_a_comment_is_refused() -> None:
    """Whoever searches for the end of the file from behind could find another one in it."""
    assert "no comment" in str(refusal_of(sample_file(".pt")[:-2] + struct.pack("<H", 5)))


def test_records_that_claim_more_than_the_file_holds_are_refused() -> None:
    data = bytearray(archive_of({"archive/data.pkl": b"N."}))
    struct.pack_into("<LL", data, data.index(b"PK\x01\x02") + 20, 2**31, 2**31)
    assert "overlap" in str(refusal_of(bytes(data)))


def test_a_zip_behind_something_else_is_refused() -> None:
    assert refusal_of(b"#!/bin/sh\n" + sample_file(".pt")).reason is Reason.NOT_A_CHECKPOINT
    assert "behind other data" in str(refusal_of(b"PK\x03\x04" + bytes(26) + sample_file(".pt")))


def test_a_zip_before_something_else_is_refused() -> None:
    assert refusal_of(sample_file(".pt") + b"more").reason is Reason.NOT_A_CHECKPOINT


def test_an_oversized_pickle_is_refused() -> None:
    assert "data.pkl is larger" in str(refusal_of(with_pickle(bytes(MAX_PICKLE_BYTES + 1))))


def tensor_file(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + body


@pytest.mark.parametrize("length", [2**63, 2**32, MAX_HEADER_BYTES + 1, 10**6])
def test_a_header_that_claims_to_be_huge_is_refused(length: int) -> None:
    assert refusal_of(tensor_file(b"{}", length=length)).reason is Reason.NOT_A_CHECKPOINT


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b'"a":' * 10,
        b"{" * 100_000,
        b'{"a":' + b"[" * 100_000,
        b'{"a":1,"a":2}',
        b'{"__metadata__":3}',
        b'{"__metadata__":{"tamiyo_checkpoint":3}}',
        b'{"__metadata__":{"tamiyo_checkpoint":"{"}}',
        b'{"__metadata__":{"tamiyo_checkpoint":"[]"}}',
        b'{"__metadata__":{"tamiyo_checkpoint":"{\\"a\\":NaN}"}}',
        b'{"__metadata__":{"tamiyo_checkpoint":"{\\"a\\":\\"\\\\ud800\\"}"}}',
        b'{"a":' + b"9" * 100_000 + b"}",
        b'{"\xff":1}',
    ],
)
def test_a_damaged_header_is_refused(header: bytes) -> None:
    assert refusal_of(tensor_file(header)).reason is Reason.NOT_A_CHECKPOINT


def test_a_key_that_stands_twice_in_the_header_is_refused() -> None:
    data = sample_file(".safetensors")
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()[:-1] + b',"heads.risk.0.bias":{}}'
    assert "twice" in str(refusal_of(tensor_file(header, data[8 + length :])))


def test_a_header_longer_than_the_cap_is_refused_unread() -> None:
    assert "header claims" in str(refusal_of(tensor_file(b"{}" + b" " * MAX_HEADER_BYTES)))


def test_many_tensors_are_refused() -> None:
    many = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(1001)}
    assert "1001 tensors" in str(refusal_of(tensor_file({"__metadata__": {"tamiyo_checkpoint": "{}"}} | many)))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F31"},
        {"shape": [-1, 8]},
        {"shape": [2**40, 2**40]},
        {"shape": "8"},
        {"shape": [9]},
        {"data_offsets": [0, 4]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        {"more": 1},
    ],
)
def test_a_tensor_entry_that_lies_is_refused(change: dict[str, object]) -> None:
    data = sample_file(".safetensors")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["heads.risk.0.bias"].update(change)
    assert refusal_of(tensor_file(header, data[8 + length :])).reason is Reason.NOT_A_CHECKPOINT


def test_tensors_that_share_bytes_are_refused() -> None:
    data = sample_file(".safetensors")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = "heads.risk.0.bias", "heads.value.0.bias"
    header[first]["data_offsets"] = header[second]["data_offsets"]
    assert "overlap" in str(refusal_of(tensor_file(header, data[8 + length :])))


def test_tensors_that_end_before_the_file_are_refused() -> None:
    assert refusal_of(sample_file(".safetensors") + bytes(4)).reason is Reason.NOT_A_CHECKPOINT


def test_other_types_in_a_tensor_file_are_named() -> None:
    data = sample_file(".safetensors")
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"dtype":"F32"', b'"dtype":"I32"')
    assert refusal_of(tensor_file(header, data[8 + length :])).reason is Reason.DTYPES


def test_an_archive_from_torch_itself_is_read() -> None:
    """A trainer may use torch.save on the same content; the folder in the zip is then named after the file."""
    content = torch.load(io.BytesIO(sample_file(".pt")), weights_only=True)
    torch.save(content, "tamiyo_gnn_v1.pt")
    checkpoint = read(Path("tamiyo_gnn_v1.pt"))
    assert checkpoint.state.keys() == sample_state().keys()


def test_a_record_whose_checksum_differs_is_named() -> None:
    data = bytearray(sample_file(".pt"))
    data[data.index(sample_records()["archive/data/3"])] ^= 1
    assert "checksum differs" in str(refusal_of(bytes(data)))
