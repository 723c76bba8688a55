"""Products compute what they say, with copies of the weights."""

from __future__ import annotations

import pytest
import torch

from tamiyo_stream.inference.products import WAYS, Products, onednn, plain


@pytest.fixture(
    params=[way(precision) for way in WAYS for precision in ("fp32", "bf16")],
    ids=lambda p: f"{p.name} {p.precision}",
)
def products(request) -> Products:
    return request.param


def operands(rows: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, 48, generator=random),
        torch.randn(32, 48, generator=random),
        torch.randn(32, generator=random),
    )


@torch.inference_mode()
def test_a_product_is_the_linear_layers(products) -> None:
    x, weight, bias = operands()
    found = products.linear(weight, bias)(x.to(products.dtype))
    assert found.dtype == products.dtype
    bound = 1e-5 if products.precision == "fp32" else 2e-2
    expected = x @ weight.T + bias
    assert (found.float() - expected).abs().max() <= bound * expected.abs().max()
    without = products.linear(weight, None)(x.to(products.dtype))
    assert (without.float() + bias - expected).abs().max() <= bound * expected.abs().max()


@torch.inference_mode()
def test_no_rows_give_no_rows(products) -> None:
    _, weight, bias = operands()
    assert products.linear(weight, bias)(torch.empty(0, 48, dtype=products.dtype)).shape == (0, 32)


@torch.inference_mode()
def test_weights_are_copied(products) -> None:
    x, weight, bias = operands()
    linear = products.linear(weight, bias)
    before = linear(x.to(products.dtype))
    weight.zero_()
    bias.zero_()
    assert torch.equal(linear(x.to(products.dtype)), before)


@torch.inference_mode()
@pytest.mark.parametrize("make", [plain, onednn])
def test_half_precision_products_can_compute_a_layer_in_float32(make) -> None:
    x, weight, bias = operands()
    found = make("bf16").linear(weight, bias, precision="fp32")(x)
    torch.testing.assert_close(found, x @ weight.T + bias)
