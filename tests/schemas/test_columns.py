"""Columns: little-endian numbers of a fixed dtype, read without copying, NaN where nothing was measured."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from schemas.catalogue import MESSAGES
from schemas.codec import decode_payload, encode_payload
from schemas.record import Column, Float16Column, Float32Column, Int32Column, UInt8Column
from schemas.tolaria import LayerTelemetry, SystemStatePacket
from schemas.urza import EdgeList

BASE = {"run_id": "run", "packet_id": "packet", "global_step": 1, "timestamp_ns": 1}


@pytest.mark.parametrize(
    ("kind", "code"), [(Float32Column, "f"), (Float16Column, "e"), (Int32Column, "i"), (UInt8Column, "B")]
)
def test_a_column_is_little_endian_on_the_wire(kind: type[Column], code: str):
    column = kind.from_wire(struct.pack(f"<3{code}", 1, 2, 100))
    assert column.tolist() == [1, 2, 100]


def test_a_column_shares_the_bytes_of_the_entry():
    wire = struct.pack("<2f", 1, 2)
    column = Float32Column.from_wire(wire)
    assert column.ctypes.data == np.frombuffer(wire, dtype=np.uint8).ctypes.data


@pytest.mark.parametrize("wire", [struct.pack("<2f", 1, 2), [1.0, 2.0]], ids=["bin", "list"])
def test_a_decoded_column_is_read_only(wire: object):
    with pytest.raises(ValueError, match="read-only"):
        Float32Column.from_wire(wire)[0] = 3.0


@pytest.mark.parametrize("kind", [Float32Column, Float16Column])
def test_none_is_not_measured_and_zero_is_a_value(kind: type[Column]):
    np.testing.assert_array_equal(kind.of([None, 0.0, 1.5]), np.array([np.nan, 0.0, 1.5]))


@pytest.mark.parametrize("values", [[0.5], [float("nan")], [None], [2**31], np.array([1.5])])
def test_an_integer_column_refuses_what_it_cannot_hold(values: object):
    with pytest.raises(ValueError, match="does not fit int32"):
        Int32Column.of(values)


@pytest.mark.parametrize("values", [[-1], [256]])
def test_a_byte_column_refuses_numbers_out_of_range(values: list[int]):
    with pytest.raises(ValueError, match="does not fit uint8"):
        UInt8Column.of(values)


def test_a_float_out_of_range_becomes_infinite():
    assert Float16Column.of([1e6, -1e6]).tolist() == [np.inf, -np.inf]


def test_an_integer_array_of_another_width_fits_where_its_values_do():
    assert Int32Column.of(np.array([1, 2], dtype=np.int64)).dtype == np.dtype("<i4")


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, 2.0], dtype=np.float64),
        np.array([1.0, 2.0], dtype=">f4"),
        np.array([1.0, 0.0, 2.0, 0.0], dtype=np.float32)[::2],
        [1, 2],
    ],
    ids=["float64", "big-endian", "strided", "list"],
)
def test_whatever_is_given_for_a_column_is_written_in_its_own_dtype(values: object):
    message = SystemStatePacket(**BASE, layers=LayerTelemetry(weight_norm=values))  # type: ignore[arg-type]  # the point
    assert struct.pack("<2f", 1, 2) in encode_payload(message)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_bytes_that_are_no_whole_number_of_elements_are_refused(size: int):
    with pytest.raises(ValueError, match=rf"{size} bytes are no whole number of float32 elements; send 4"):
        Float32Column.from_wire(b"\x00" * size)


@pytest.mark.parametrize("item", ["1", True, [1.0], {}, b"\x00"])
def test_a_list_that_holds_anything_but_numbers_is_refused(item: object):
    with pytest.raises(ValueError, match=r"expected float32 at position 1, got .*; send a number"):
        Float32Column.from_wire([1.0, item])


@pytest.mark.parametrize("item", [1.0, None])
def test_a_list_of_integers_holds_neither_floats_nor_nil(item: object):
    with pytest.raises(ValueError, match="expected int32 at position 0"):
        Int32Column.from_wire([item])


@pytest.mark.parametrize("value", ["abc", 1, {}, True])
def test_only_bin_and_lists_are_columns(value: object):
    with pytest.raises(ValueError, match=r"expected float32 column, got .*; send bin or a list"):
        Float32Column.from_wire(value)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"column `target` has 1 elements but `source` has 2; send one element"):
        EdgeList(source=Int32Column.of([0, 1]), target=Int32Column.of([1]))


def test_an_empty_column_is_not_an_absent_one():
    payload = encode_payload(SystemStatePacket(**BASE, layers=LayerTelemetry(weight_norm=Float32Column.of([]))))
    message = decode_payload(MESSAGES["SystemStatePacket"], payload)
    assert isinstance(message, SystemStatePacket)
    assert message.layers is not None
    assert message.layers.weight_norm is not None
    assert message.layers.weight_norm.shape == (0,)
    assert message.layers.gradient_norm is None
