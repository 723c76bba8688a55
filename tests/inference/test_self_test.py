"""The self-test chooses by time among the ways that are exact enough, and says what it found."""

from __future__ import annotations

import time

import pytest
import torch

from tamiyo_stream.inference import self_test
from tamiyo_stream.inference.products import Products, plain
from tamiyo_stream.inference.self_test import NoProducts, choose_products


def slow(precision) -> Products:
    def prepare(weight, bias):
        def linear(x):
            time.sleep(0.002)
            return torch.nn.functional.linear(x, weight, bias)

        return linear

    return Products("slow", precision, prepare)


def secretly_half(precision) -> Products:
    def prepare(weight, bias):
        return lambda x: torch.nn.functional.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).to(x.dtype)

    return Products("secretly half", precision, prepare)


def absent(precision) -> Products:
    def prepare(weight, bias):
        raise RuntimeError("no such library\nwith details")

    return Products("absent", precision, prepare)


def offer(monkeypatch, *ways) -> None:
    monkeypatch.setattr(self_test, "WAYS", ways)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_of_the_precision_are_found_here(precision) -> None:
    products = choose_products(precision, 1)
    assert products.precision == precision
    chosen = next(candidate for candidate in products.report if candidate.name == products.name)
    assert not chosen.refusal
    assert chosen.milliseconds == min(each.milliseconds for each in products.report if not each.refusal)


def test_the_faster_way_is_chosen(monkeypatch) -> None:
    offer(monkeypatch, slow, plain)
    products = choose_products("fp32", 1)
    assert products.name == "torch"
    assert [candidate.name for candidate in products.report] == ["slow", "torch"]


def test_a_way_that_computes_with_fewer_bits_is_refused(monkeypatch) -> None:
    offer(monkeypatch, secretly_half, slow)
    products = choose_products("fp32", 1)
    assert products.name == "slow"
    assert products.report[0].refusal.endswith("is over 5e-06")


def test_a_way_that_does_not_work_is_refused_with_its_reason(monkeypatch) -> None:
    offer(monkeypatch, absent, plain)
    assert choose_products("fp32", 1).report[0].refusal == "does not work: no such library"


def test_where_no_way_is_left_the_error_names_them_all(monkeypatch) -> None:
    offer(monkeypatch, absent, secretly_half)
    with pytest.raises(NoProducts, match=r"absent: does not work: .*; secretly half: error"):
        choose_products("fp32", 1)


def test_rows_that_depend_on_their_number_are_found(monkeypatch) -> None:
    def dependent(precision) -> Products:
        def prepare(weight, bias):
            return lambda x: torch.nn.functional.linear(x, weight, bias) * (1 + 1e-7 * (len(x) < 10))

        return Products("dependent", precision, prepare)

    offer(monkeypatch, dependent)
    assert not choose_products("fp32", 1).report[0].same_in_any_batch


def test_the_threads_of_the_caller_are_restored() -> None:
    before = torch.get_num_threads()
    choose_products("fp32", before + 1)
    assert torch.get_num_threads() == before
