"""Parameters, FLOPs and KV bytes against numbers worked out by hand. No torch."""

from __future__ import annotations

import pytest

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.runs.estimate import kv_memory, model_cost
from dba_core.runs.pages import cache_rows, human_bytes, times_smaller

SHAPE = AttentionShape(d_model=32, n_heads=4, n_kv_heads=2, sem_head_dim=3, geo_head_dim=4, v_head_dim=5)
PARAMETERS = [
    ("tok_emb.weight", (256, 32)),
    ("blocks.0.ln1.weight", (32,)),
    ("blocks.0.attn.q_sem.weight", (12, 32)),
    ("blocks.0.attn.gate.decoupled_gate_proj.weight", (4, 32)),
    ("blocks.0.attn.null_token.v_null", (2, 5)),
    ("blocks.0.attn.summarizer.mix.weight", (7, 7)),
    ("blocks.0.ff.up.weight", (64, 32)),
]


def test_cost_of_a_tied_model() -> None:
    cost = model_cost(PARAMETERS, shape=SHAPE, n_layers=1, context=9, tied_embeddings=True)
    assert cost["parameters"] == 8192 + 32 + 384 + 128 + 10 + 49 + 2048
    matrices = 8192 + 384 + 128 + 2048
    # 10 / 2 keys on average, 4 heads of 3 + 4 + 5 multiply-adds, 2 FLOPs each
    assert cost["forward_flops_per_token"] == 2 * matrices + 5 * 4 * 12 * 2
    assert cost["training_flops_per_token"] == 3 * cost["forward_flops_per_token"]


def test_an_untied_embedding_is_a_lookup() -> None:
    untied = [*PARAMETERS, ("lm_head.weight", (256, 32))]
    tied = model_cost(PARAMETERS, shape=SHAPE, n_layers=1, context=9, tied_embeddings=True)
    cost = model_cost(untied, shape=SHAPE, n_layers=1, context=9, tied_embeddings=False)
    assert cost["forward_flops_per_token"] == tied["forward_flops_per_token"]
    assert cost["parameters"] == tied["parameters"] + 8192


@pytest.mark.parametrize("n_layers", [1, 3])
def test_kv_memory_by_hand(n_layers: int) -> None:
    policy = KVCachePolicy.parse("ksem=q4_0@8,kgeo=q8_0@8,v=fp16,resid=10")
    memory = kv_memory(SHAPE, n_layers, policy, context=24)
    k_sem = 2 * 2 + 2  # 2 heads of 3 values in 2 bytes, one scale for 6 values
    k_geo = 2 * 4 + 2  # 8 values, one scale
    v = 2 * 5 * 2
    layer = k_sem + k_geo + v
    window = 2 * 2 * (3 + 4) * (10 + 64)  # fp16, resid + the default rollback, quantized tensors only
    standard = 2 * 32 * 2
    assert memory["bytes_per_token_per_layer"] == layer
    assert memory["bytes_per_token"] == n_layers * layer
    assert memory["residual_bytes"] == n_layers * window
    assert memory["long_context"] == 128 * 1024
    assert memory["bytes_long"] == n_layers * (131072 * layer + window)
    assert memory["fp16_bytes_per_token"] == n_layers * 2 * (3 + 4 + 5) * 2
    assert memory["standard_bytes_per_token"] == n_layers * standard
    assert memory["standard_bytes_long"] == n_layers * 131072 * standard
    assert memory["ratio"] == pytest.approx(131072 * standard / (131072 * layer + window), rel=1e-12)
    assert memory["context"] == 24
    assert memory["bytes_context"] == n_layers * (24 * layer + window)
    assert memory["fp16_bytes_context"] == n_layers * 24 * 2 * (3 + 4 + 5) * 2
    assert memory["standard_bytes_context"] == n_layers * 24 * standard
    assert memory["ratio_context"] == pytest.approx(24 * standard / (24 * layer + window), rel=1e-12)


def test_the_ratio_at_the_own_context_comes_first_and_that_at_128k_is_for_scale() -> None:
    policy = KVCachePolicy.parse("ksem=q4_0@8,kgeo=q8_0@8,v=fp16,resid=10")
    rows = dict(cache_rows(policy.short, kv_memory(SHAPE, 1, policy, context=24)))
    assert list(rows) == ["KV Policy", "KV bytes per token", "KV cache at 24 tokens", "For scale, at 128k"]
    own = rows["KV cache at 24 tokens"]  # 24 * 36 + 2072 bytes; 24 * 128 and 24 * 48 in fp16
    assert own.startswith("2.9 KiB with 2.0 KiB of residual window, 1.05x smaller than fp16 standard")
    assert own.endswith("(3.0 KiB), 2.5x larger than this layout in fp16 (1.1 KiB)")
    assert "3.6x smaller than fp16 standard attention (16.0 MiB)" in rows["For scale, at 128k"]
    assert "beyond this model's context" in rows["For scale, at 128k"]
    assert "For scale, at 128k" not in dict(cache_rows("", kv_memory(SHAPE, 1, policy, context=131072)))


@pytest.mark.parametrize(
    ("own", "other", "text"),
    [
        (10, 30, "3.0x smaller than"),
        (30, 20, "1.5x larger than"),
        (104, 100, "1.04x larger than"),
        (1000, 1001, "1.001x smaller than"),
        (5, 5, "as large as"),
    ],
)
def test_times_smaller(own: int, other: int, text: str) -> None:
    assert times_smaller(own, other) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (9 << 50, "9216.0 TiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
