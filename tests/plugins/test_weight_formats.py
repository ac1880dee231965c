"""The weight formats: their contract, what they hold exactly, and both ways of a product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dba_core.testing import WeightFormatContract
from dba_plugins.weights import packed
from dba_plugins.weights.blocks import BlockWeight
from dba_plugins.weights.floats import FloatWeight

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]


class TestFp32(WeightFormatContract):
    plugin = "fp32"


class TestBf16(WeightFormatContract):
    plugin = "bf16"


class TestInt8(WeightFormatContract):
    plugin = "int8"


class TestInt4(WeightFormatContract):
    plugin = "int4"


def random(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def blocks(codes: Tensor, scale: Tensor, least: Tensor | float) -> Tensor:
    """codes [N,G,32] with float16 scales [N,G] and what is added to each block -> a weight [N,32 G]."""
    return (codes * scale.half().float()[..., None] + least).flatten(1)


def test_int8_holds_q8_0() -> None:
    codes = torch.randint(-127, 128, (16, 6, 32), generator=torch.Generator().manual_seed(0)).float()
    codes[..., 0] = 127.0  # the block's largest value is what its scale is made of
    weight = blocks(codes, random(16, 6).abs() * 0.01 + 1e-3, 0.0)
    assert torch.equal(BlockWeight.pack(weight, bits=8).dense(), weight)


@pytest.mark.parametrize(("low", "high"), [(0, 15), (2, 11), (5, 6)])
def test_int4_holds_q4_1_whatever_codes_a_block_uses(low: int, high: int) -> None:
    generator = torch.Generator().manual_seed(low)
    codes = torch.randint(low, high + 1, (16, 4, 32), generator=generator).float()
    codes[..., 0], codes[..., 1] = 0.0, float(high)
    scale, least = random(16, 4).abs() * 0.01 + 1e-3, random(16, 4, seed=1).half().float()
    weight = blocks(codes, scale, least[..., None])
    assert torch.equal(BlockWeight.pack(weight, bits=4).dense(), weight)


def test_int4_holds_q4_0() -> None:
    codes = torch.randint(0, 16, (8, 6, 32), generator=torch.Generator().manual_seed(0)).float()
    codes[..., 0] = 0.0  # ggml's scale is signed so that the largest value has code 0
    scale = (random(8, 6) * 0.01).half().float()
    weight = ((codes - 8.0) * scale[..., None]).flatten(1)
    error = (BlockWeight.pack(weight, bits=4).dense() - weight).abs().max()
    assert error <= 1e-6 * weight.abs().max()


def test_int4_is_closer_than_the_steps_from_the_least_to_the_largest_value() -> None:
    weight = random(64, 256)
    spans = weight.view(64, -1, 32)
    low, high = spans.amin(-1, keepdim=True), spans.amax(-1, keepdim=True)
    step = (high - low) / 15.0
    plain = ((spans - low) / step).round() * step + low
    fitted = BlockWeight.pack(weight, bits=4).dense()
    assert (fitted - weight).norm() < 0.95 * (plain - spans).norm()


@pytest.mark.parametrize("bits", [8, 4, 16, 32])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
def test_the_kernel_gives_what_the_dequantized_weight_gives(bits: int, m: int, monkeypatch) -> None:
    weight = random(70, 200)
    made = (
        BlockWeight.pack(weight, bits=bits)
        if bits < 16
        else FloatWeight.pack(weight, dtype=torch.bfloat16 if bits == 16 else torch.float32)
    )
    x = random(m, 200, seed=1)
    exact = x.double() @ made.dense().double().T
    few = made.product(x)
    monkeypatch.setattr(packed, "FEW", 0)
    many = made.product(x)
    assert not torch.equal(few, many) or bits == 32  # two ways, not one
    for got in (few, many):
        assert float((got - exact).abs().max()) < 1e-4 * float(exact.abs().max())


def test_a_product_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_has_llvmlite", lambda: False)
    made, x = BlockWeight.pack(random(9, 40), bits=4), random(2, 40, seed=1)
    assert torch.allclose(made.product(x), x @ made.dense().T, atol=1e-5)


def test_tiny_and_huge_weights_stay_finite() -> None:
    for size in (1e-12, 1e-7, 1e-5, 1e3):
        weight = random(8, 64) * size
        for bits in (8, 4):
            values = BlockWeight.pack(weight, bits=bits).dense()
            assert torch.isfinite(values).all()
            assert float((values - weight).abs().max()) <= max(0.3 * size, 2.0**-24)
