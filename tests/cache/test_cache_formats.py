"""Every cache format against an independent numpy implementation: codes, scales and values, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cache_oracle import nf4_levels, pack_halves, quantize

from dba_core import AttentionConfig, DecoupledAttention
from dba_core.cache.blocks import pack_nibbles, round_up_bf16, unpack_nibbles
from dba_core.config.kv_policy import TensorFormat, format_facts, installed_formats
from dba_core.contracts import KVCodec, KVFormatRequest
from dba_core.errors import PluginError
from dba_core.registry import Access, Registry
from dba_plugins.kv_formats.nf4 import NF4_LEVELS, nearest_level

pytestmark = pytest.mark.torch

FLOAT_FORMATS = ("fp32", "fp16", "bf16")
BLOCK_FORMATS = ("q8_0", "nf4", "q4_0")
FORMATS = FLOAT_FORMATS + BLOCK_FORMATS
# heads, width, qblock: a block is a part of a head, a head, several heads, straddles heads; short last blocks
SHAPES = [(2, 64, 32), (2, 32, 32), (4, 8, 32), (2, 24, 32), (3, 5, 8), (1, 1, 8), (3, 7, 16), (5, 3, 32)]
SHAPES += [(2, 33, 64), (6, 6, 32), (1, 40, 256)]


def round_trip(x, fmt: str, qblock: int = 32):
    codec = codec_of(fmt, x.shape[1], x.shape[3], qblock if fmt in BLOCK_FORMATS else 0)
    encoded = codec.encode(x)
    return codec.decode(encoded.codes, encoded.scales)


def codec_of(fmt: str, heads: int, width: int, qblock: int) -> KVCodec:
    request = KVFormatRequest(n_heads=heads, head_dim=width, qblock=qblock)
    return Registry.default().select("kv_format", fmt, request).build()


def relative_l2(x, y) -> float:
    return float((x.double() - y.double()).norm() / x.double().norm())


def normal(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_installed_formats_are_those_of_the_policy():
    assert tuple(installed_formats()) == FORMATS  # the most precise first
    assert [name for name in FORMATS if format_facts(name).quantized] == list(BLOCK_FORMATS)
    assert [TensorFormat.parse(name).qblock for name in FORMATS] == [0, 0, 0, 32, 32, 32]


@pytest.mark.parametrize("fmt", BLOCK_FORMATS)
@pytest.mark.parametrize(("heads", "width", "qblock"), SHAPES)
def test_codes_scales_and_values_equal_the_oracle(fmt, heads, width, qblock):
    x = normal(2, heads, 3, width, seed=heads * width) * torch.logspace(-3, 3, heads)[:, None, None]
    codec = codec_of(fmt, heads, width, qblock)
    encoded = codec.encode(x)
    codes, scales, values = quantize(x.numpy(), fmt, qblock)
    expected = codes.astype(np.int8) if fmt == "q8_0" else pack_halves(codes)
    assert encoded.codes.dtype == getattr(torch, format_facts(fmt).code_dtype)
    assert encoded.codes.shape[-1] == format_facts(fmt).code_width(width)
    assert encoded.scales.dtype == torch.bfloat16
    np.testing.assert_array_equal(encoded.codes.numpy(), expected)
    np.testing.assert_array_equal(encoded.scales.double().numpy(), scales)
    decoded = codec.decode(encoded.codes, encoded.scales)
    assert decoded.dtype == torch.float32
    # the oracle constructs the nf4 levels, the format has the published decimals; the others are exact
    np.testing.assert_allclose(decoded.double().numpy(), values, rtol=3e-6 if fmt == "nf4" else 0)


@pytest.mark.parametrize("fmt", BLOCK_FORMATS)
def test_strided_input_is_encoded_like_contiguous_input(fmt):
    x = normal(2, 5, 3, 16).transpose(1, 2)  # [B, G, T, D] as a projection gives it
    codec = codec_of(fmt, 3, 16, 32)
    strided, plain = codec.encode(x), codec.encode(x.contiguous())
    assert torch.equal(strided.codes, plain.codes)
    assert torch.equal(strided.scales, plain.scales)


@pytest.mark.parametrize("fmt", FORMATS)
def test_round_trip_error_is_the_one_in_the_table(fmt):
    x = normal(1, 8, 256, 64)
    stated = format_facts(fmt).round_trip_error
    assert relative_l2(x, round_trip(x, fmt)) == pytest.approx(stated, rel=0.04, abs=0)


@pytest.mark.parametrize("fmt", BLOCK_FORMATS)
@pytest.mark.parametrize("largest", [1e-30, 1e-6, 6e4, 1e30])
def test_relative_error_does_not_depend_on_the_size_of_the_values(fmt, largest):
    x = normal(1, 8, 64, 64)
    scaled = x * (largest / x.abs().max())
    assert relative_l2(scaled, round_trip(scaled, fmt)) == pytest.approx(
        format_facts(fmt).round_trip_error, rel=0.05
    )


@pytest.mark.parametrize("fmt", BLOCK_FORMATS)
@pytest.mark.parametrize("value", [2.0**126, -(2.0**126), 2.0**-126, -1e-38])
def test_extreme_values_stay_finite_and_keep_their_sign(fmt, value):
    decoded = round_trip(torch.full((1, 1, 1, 32), value), fmt)
    assert torch.isfinite(decoded).all()
    assert (decoded * value >= 0).all()
    assert abs(value) < 2.0**-125 or torch.allclose(decoded, torch.tensor(value), rtol=0.01)


@pytest.mark.parametrize("fmt", BLOCK_FORMATS)
def test_a_block_of_zeros_decodes_to_exact_zeros_beside_other_blocks(fmt):
    x = normal(1, 2, 2, 32)
    x[0, 1, 0] = 0.0
    decoded = round_trip(x, fmt)
    assert (decoded[0, 1, 0] == 0).all()
    assert (decoded[0, 0, 0] != 0).any()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_input_dtypes_are_encoded_as_their_float32_value(fmt, dtype):
    x = normal(1, 2, 3, 24).to(dtype)
    assert torch.equal(round_trip(x, fmt), round_trip(x.float(), fmt))


@pytest.mark.parametrize(("fmt", "numpy_type"), [("fp32", np.float32), ("fp16", np.float16)])
def test_float_formats_round_like_numpy(fmt, numpy_type):
    x = normal(1, 2, 5, 7) * 100
    np.testing.assert_array_equal(round_trip(x, fmt).numpy(), x.numpy().astype(numpy_type))


def test_bf16_rounds_to_the_nearest_of_8_significant_bits():
    x = normal(1, 1, 4, 64).double().numpy()
    mantissa, exponent = np.frexp(x)
    expected = np.rint(mantissa * 256) / 256 * 2.0**exponent
    np.testing.assert_array_equal(round_trip(torch.from_numpy(x), "bf16").double().numpy(), expected)


def test_nf4_levels_are_the_normal_quantiles_of_the_paper():
    np.testing.assert_allclose(NF4_LEVELS, nf4_levels(), atol=2e-7)
    assert NF4_LEVELS[0] == -1.0
    assert NF4_LEVELS[7] == 0.0
    assert NF4_LEVELS[15] == 1.0


def test_nearest_level_is_exact_everywhere_also_beside_midpoints_and_cell_edges():
    levels = np.array(NF4_LEVELS)
    edges = np.concatenate([(levels[1:] + levels[:-1]) / 2, np.linspace(-1, 1, 33), levels]).astype(
        np.float32
    )
    beside = [np.nextafter(edges, np.float32(side)) for side in (-2, 2)]
    x = np.clip(np.concatenate([edges, *beside, np.linspace(-1, 1, 20001, dtype=np.float32)]), -1, 1)
    x = x.astype(np.float32)
    distance = np.abs(x.astype(np.float64)[:, None] - levels)
    chosen = nearest_level(torch.from_numpy(x)).numpy()
    worse = distance[np.arange(x.size), chosen] - distance.min(1)
    assert (
        worse.max() <= 2.0**-24
    )  # half a float32 step at a midpoint, which has no float32 number of its own


def test_scales_are_rounded_up_to_bf16_and_exact_ones_stay():
    values = torch.tensor([0.0, 1.0, 1.0 + 2.0**-23, 1.0078125, 3e-39, 1e38])
    expected = [2.0**-126, 1.0, 1.0078125, 1.0078125, 2.0**-126]
    rounded = round_up_bf16(values).double()
    assert rounded[:5].tolist() == expected
    assert 1e38 <= float(rounded[5]) <= 1e38 * (1 + 2.0**-7)


@pytest.mark.parametrize("width", [1, 2, 5, 64])
def test_nibbles_come_back(width):
    codes = torch.arange(3 * width, dtype=torch.uint8).view(3, width) % 16
    np.testing.assert_array_equal(pack_nibbles(codes).numpy(), pack_halves(codes.numpy()))
    assert torch.equal(unpack_nibbles(pack_nibbles(codes), width), codes)


def test_float_formats_have_no_scales():
    for fmt in FLOAT_FORMATS:
        assert codec_of(fmt, 2, 4, 0).encode(normal(1, 2, 1, 4)).scales is None


def test_a_format_that_is_blocked_is_refused_by_the_registry_that_a_layer_has() -> None:
    config = AttentionConfig(d_model=16, n_heads=2, sem_head_dim=4, geo_head_dim=4, v_head_dim=8)
    registry = Registry(access=Access(blocked=("kv_format=q4_0",)))
    layer = DecoupledAttention(config, registry=registry)
    layer.new_cache(batch=1, capacity=4, policy="ksem=q8_0,kgeo=fp16,v=nf4")
    with pytest.raises(PluginError, match=r"kv_format 'q4_0' .* may not be used"):
        layer.new_cache(batch=1, capacity=4, policy="ksem=q8_0,kgeo=fp16,v=q4_0")


def test_an_allow_list_of_others_leaves_the_formats_and_sources_of_the_library() -> None:
    registry = Registry(access=Access(allowed=("gate=causal",)))
    for kind in ("kv_format", "checkpoint_source", "command"):
        assert [info.problem for info in registry.list(kind) if info.problem is not None] == []
    assert {info.name for info in registry.list("gate") if info.problem is None} == {"causal"}
