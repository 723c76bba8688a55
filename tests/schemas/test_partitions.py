"""A run's messages always travel through the same partition, whoever computes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue import Stream
from schemas.partitions import ORDERED, partition_of, stream_key


@pytest.mark.parametrize(
    ("run_id", "partitions", "partition"),
    [
        ("123456789", 2**32, 0xCBF43926),  # the check value of CRC-32
        ("run-1", 1, 0),
        ("run-1", 4, 3),
        ("run-2", 4, 1),
        ("run-1", 16, 3),
        ("l\N{LATIN SMALL LETTER A WITH DIAERESIS}uft", 16, 4),
        ("", 4, 0),
    ],
)
def test_the_partition_is_the_crc32_of_the_utf8_run_id(run_id: str, partitions: int, partition: int):
    assert partition_of(run_id, partitions) == partition


@given(st.text(), st.integers(1, 64))
def test_every_run_has_a_partition(run_id: str, partitions: int):
    assert 0 <= partition_of(run_id, partitions) < partitions


@pytest.mark.parametrize("partitions", [0, -1])
def test_fewer_than_one_partition_is_refused(partitions: int):
    with pytest.raises(ValueError, match=rf"partitions is {partitions}; configure 1 or more"):
        partition_of("run", partitions)


def test_states_and_seeds_of_a_run_are_ordered():
    assert {Stream.STATE, Stream.SEEDS} == ORDERED


def test_a_partition_of_an_ordered_input_is_a_hash_tag():
    assert stream_key(Stream.STATE, partition=3, partitions=4) == "oona.tolaria.state.{3}"


def test_one_partition_leaves_the_plain_name():
    assert stream_key(Stream.STATE) == "oona.tolaria.state"


def test_other_streams_are_not_partitioned():
    assert stream_key(Stream.COMMANDS, partition=3, partitions=4) == "oona.tamiyo.commands"


def test_a_renamed_stream_keeps_its_partitions():
    assert stream_key(Stream.SEEDS, name="lab.seeds", partition=1, partitions=2) == "lab.seeds.{1}"


@pytest.mark.parametrize("partition", [-1, 4])
def test_a_partition_that_does_not_exist_is_refused(partition: int):
    with pytest.raises(ValueError, match=rf"partition {partition} does not exist; there are 4"):
        stream_key(Stream.STATE, partition=partition, partitions=4)
