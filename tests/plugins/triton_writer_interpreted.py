"""The quantizing append, run by Triton's interpreter; started by test_triton_writer in a process of its own.

The interpreter must be on before triton is imported, so that this is no module of the usual session.
"""

from __future__ import annotations

import pytest
import torch
import triton_interpreter  # noqa: F401 - makes the interpreter quicker

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import CacheError
from dba_core.registry import Registry
from dba_plugins.decode.triton.writer import TritonWriter

pytestmark = pytest.mark.torch

WIDTHS = (6, 10, 7)
POLICIES = (
    "ksem=q4_0@32,kgeo=q8_0@16,v=nf4@32,resid=5",
    "ksem=q8_0@32,kgeo=q4_0@16,v=q8_0@64",
    "ksem=nf4@16,kgeo=nf4@64,v=q4_0@16,resid=3",
    "ksem=fp32,kgeo=fp16,v=bf16,resid=4",
)


def make(policy: str, *, widths=WIDTHS, heads: int = 3, capacity: int = 40) -> LayerCache:
    k_sem, k_geo, v = ((heads, width) for width in widths)
    parsed = KVCachePolicy.parse(policy)
    return LayerCache(
        registry=Registry.default(),
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        batch=2,
        capacity=capacity,
        policy=parsed,
        rollback=2,
    )


def tokens(count: int, *, widths=WIDTHS, heads: int = 3, scale: float = 1.0, dtype=torch.float32):
    return [(scale * torch.randn(2, heads, count, width)).to(dtype) for width in widths]


def planes(cache: LayerCache):
    """Every plane as bits."""
    for store in (cache.k_sem, cache.k_geo, cache.v):
        for plane in (store.codes, store.scales, store.recent_ring):
            if plane is not None:
                yield plane.contiguous().view(torch.uint8)


def same(plain: LayerCache, written: LayerCache) -> None:
    assert plain.lengths == written.lengths
    for a, b in zip(planes(plain), planes(written), strict=True):
        assert torch.equal(a, b)


def both(policy: str, appends, **sizes) -> tuple[LayerCache, LayerCache]:
    plain, written = make(policy, **sizes), make(policy, **sizes)
    for x in appends:
        plain.append(*x)
        written.append(*x, writer=TritonWriter())
        written.check_values()
    return plain, written


@pytest.mark.parametrize("policy", POLICIES)
def test_bits_are_those_of_the_codecs(policy: str) -> None:
    same(*both(policy, [tokens(n) for n in (1, 9)]))


@pytest.mark.parametrize("widths", [(4, 8, 1), (16, 32, 64), (33, 2, 31), (0, 64, 100), (128, 256, 17)])
@pytest.mark.parametrize("policy", POLICIES[:3])
def test_every_width_and_blocks_across_heads(policy: str, widths: tuple[int, int, int]) -> None:
    same(*both(policy, [tokens(n, widths=widths) for n in (2, 1)], widths=widths))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
def test_inputs_of_sixteen_bits(policy: str, dtype: torch.dtype) -> None:
    same(*both(policy, [tokens(n, dtype=dtype) for n in (1, 2)]))


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-20, 1e20, 2.0**120])
@pytest.mark.parametrize("policy", POLICIES[1:2])
def test_tiny_and_huge_values(policy: str, scale: float) -> None:
    same(*both(policy, [tokens(2, scale=scale)]))


def test_ties_go_to_the_even_code_and_to_the_lower_level() -> None:
    """x / scale is n + 1/2 exactly: the block maximum is 127 and 7, so that the scale is 1; zero in nf4."""
    x = tokens(4, widths=(32, 32, 32), heads=1)
    for each, top in zip(x, (7.0, 127.0, 7.0), strict=True):
        each.copy_(torch.arange(each.numel()).view(each.shape) % 13 - 6.5)
        each[..., 0] = top
    same(*both("ksem=q4_0,kgeo=q8_0,v=nf4", [x], widths=(32, 32, 32), heads=1))


def test_ragged_lengths_are_read_from_the_device() -> None:
    plain, written = make(POLICIES[0]), make(POLICIES[0])
    start, more = tokens(6), tokens(9)
    for cache, writer in ((plain, None), (written, TritonWriter())):
        cache.append(*start, counts=(6, 2))
        cache.append(*more, writer=writer)
    same(plain, written)


def test_inputs_with_strides_of_a_projection() -> None:
    """[B,T,G,D] seen as [B,G,T,D], and a slice of channels whose last axis is no unit stride."""
    x = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in tokens(5)]
    x[2] = torch.randn(2, 3, 7, 5).transpose(2, 3)
    same(*both(POLICIES[0], [x]))


# numpy, which interprets, warns of what the conversion of a bad value gives; the flag is what counts
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 7e4])
def test_a_bad_value_raises_the_flag(bad: float) -> None:
    """7e4 is more than the fp16 ring of the second half of a row holds."""
    cache, x = make(POLICIES[0]), tokens(3)
    x[1][1, 2, 2, 9] = bad
    cache.append(*x, writer=TritonWriter())
    with pytest.raises(CacheError, match="not finite, or exceeds"):
        cache.check_values()
    cache.reset()
    cache.check_values()


def test_nothing_is_written_past_the_capacity() -> None:
    """As replays of a graph would: the device's lengths grow, the host's do not."""
    cache = make(POLICIES[0], capacity=6)
    cache.append(*tokens(5))
    before = [plane.clone() for plane in planes(cache)]
    cache.lengths_device.add_(1)
    TritonWriter().write(cache, *tokens(3))
    for old, new in zip(before, planes(cache), strict=True):
        assert torch.equal(old, new)


def test_float64_is_refused() -> None:
    with pytest.raises(CacheError, match=r"Triton writer got torch\.float64; it takes float32"):
        make(POLICIES[0]).append(*tokens(1, dtype=torch.float64), writer=TritonWriter())
