"""Cache sizes by arithmetic, against numbers worked out by hand. No torch."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from dba_core.cache.bytes import (
    LONG_CONTEXT,
    MemoryRow,
    bytes_per_token,
    default_rollback,
    memory_table,
    residual_bytes,
    standard_bytes_per_token,
    tensor_bytes_per_token,
)
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat, format_facts
from dba_core.contracts import AttentionShape
from dba_core.errors import ConfigError

MIXED = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32")
ONE_HEAD = AttentionShape(
    d_model=128, n_heads=1, n_kv_heads=1, sem_head_dim=32, geo_head_dim=64, v_head_dim=64
)


def test_the_figures_of_the_kernel_targets():
    """Per KV head and token: 18 + 68 + 36 = 122 bytes with Dv 64, 158 with Dv 128, 512 in fp16."""
    assert bytes_per_token(ONE_HEAD, MIXED) == 18 + 68 + 36
    assert bytes_per_token(attrs.evolve(ONE_HEAD, v_head_dim=128), MIXED) == 158
    assert standard_bytes_per_token(128) == 512


@pytest.mark.parametrize(
    ("heads", "width", "text", "expected"),
    [
        (8, 64, "fp32", 8 * 64 * 4),
        (8, 64, "fp16", 8 * 64 * 2),
        (8, 64, "bf16", 8 * 64 * 2),
        (8, 64, "q8_0@32", 8 * 64 + 16 * 2),
        (8, 64, "q4_0@128", 8 * 32 + 4 * 2),
        (3, 5, "nf4@8", 3 * 3 + 2 * 2),
        (3, 7, "q4_0@16", 3 * 4 + 2 * 2),
        (6, 6, "q8_0@32", 36 + 2 * 2),
        (4, 0, "q4_0@32", 0),
    ],
)
def test_one_tensor_by_hand(heads, width, text, expected):
    assert tensor_bytes_per_token(heads, width, TensorFormat.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "bits"), [("fp16", 16), ("q8_0@32", 8.5), ("q4_0@32", 4.5), ("nf4@32", 4.5)]
)
def test_bits_per_value(text, bits):
    assert tensor_bytes_per_token(4, 64, TensorFormat.parse(text)) * 8 / (4 * 64) == bits


def test_the_residual_window_counts_block_formats_only_and_rollback_too():
    policy = KVCachePolicy.parse("ksem=q4_0,kgeo=fp16,v=q8_0,resid=100")
    assert default_rollback(policy) == 100
    assert residual_bytes(ONE_HEAD, policy) == (32 + 64) * 2 * 200
    assert residual_bytes(ONE_HEAD, policy, 4) == (32 + 64) * 2 * 104
    assert residual_bytes(ONE_HEAD, MIXED) == 0
    assert default_rollback(MIXED) == 64


def test_memory_table_by_hand():
    policy = KVCachePolicy.parse("ksem=q4_0,kgeo=q8_0,v=q4_0,resid=128")
    window = (32 + 64 + 64) * 2 * 256
    rows = memory_table(ONE_HEAD, 12, policy, [0, 1000, LONG_CONTEXT])
    assert rows[1] == MemoryRow(
        context=1000, kv_bytes=12 * (1000 * 122 + window), standard_bytes=12 * 1000 * 512
    )
    assert rows[2].context == 131072
    assert rows[2].ratio == pytest.approx(131072 * 512 / (131072 * 122 + window))
    assert rows[0].ratio == 0.0
    assert memory_table(ONE_HEAD, 1, policy)[0].context == LONG_CONTEXT


def test_an_empty_cache_is_infinitely_smaller():
    assert memory_table(ONE_HEAD, 1, MIXED, [0])[0].ratio == float("inf")


def test_unknown_format_names_the_allowed_ones():
    with pytest.raises(ConfigError, match=r"unknown cache format 'q5_0'.*q4_0.*Allowed: .*fp32"):
        format_facts("q5_0")


def test_sizes_need_no_torch():
    code = "import sys, dba_core.cache.bytes; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
