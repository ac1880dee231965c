"""Derived numbers: head widths of each layout, feed-forward width, long-sequence defaults."""

from __future__ import annotations

import pytest

from dba_core.config import AttentionConfig, LongSequenceConfig, ModelConfig, TrainingConfig
from dba_core.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "d_model", "expected"),
    [
        (AttentionConfig(mode="standard", n_heads=4), 128, (4, 0, 32, 32)),
        (AttentionConfig(mode="gqa", n_heads=12), 768, (3, 0, 64, 64)),
        (AttentionConfig(mode="gqa", n_heads=12, n_kv_heads=2), 768, (2, 0, 64, 64)),
        (AttentionConfig(mode="gqa", n_heads=2), 64, (1, 0, 32, 32)),
        (AttentionConfig(mode="bottleneck", n_heads=12), 768, (12, 0, 16, 16)),
        (AttentionConfig(mode="decoupled", n_heads=4), 128, (4, 2, 6, 8)),
        (AttentionConfig(mode="decoupled", n_heads=6), 192, (6, 2, 6, 8)),
        (AttentionConfig(mode="decoupled", n_heads=12), 768, (12, 4, 12, 16)),
        (AttentionConfig(n_heads=12, sem_head_dim=4, geo_head_dim=8), 768, (12, 4, 8, 12)),
        (AttentionConfig(n_heads=4, n_kv_heads=2, v_head_dim=5), 128, (2, 2, 6, 5)),
    ],
)
def test_widths(config: AttentionConfig, d_model: int, expected: tuple[int, int, int, int]) -> None:
    full = config.resolved(d_model=d_model)
    assert (full.n_kv_heads, full.sem_head_dim, full.geo_head_dim, full.v_head_dim) == expected
    assert full.d_model == d_model
    assert full.resolved() == full
    shape = full.shape
    assert (shape.n_kv_heads, shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim) == expected
    assert (shape.d_model, shape.n_heads) == (d_model, config.n_heads)


@pytest.mark.parametrize("heads", range(1, 9))
@pytest.mark.parametrize("width", [8, 16, 24, 64, 65])
def test_derived_widths_are_usable(heads: int, width: int) -> None:
    for mode in ("standard", "bottleneck", "decoupled"):
        shape = AttentionConfig(mode=mode, n_heads=heads, d_model=heads * width).shape
        assert shape.geo_head_dim >= 2
        assert shape.geo_head_dim % 2 == 0
        assert shape.v_head_dim >= 1
        assert (shape.sem_head_dim > 0) == (mode == "decoupled")


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"n_heads": 6, "n_kv_heads": 4}, "n_kv_heads"),
        ({"geo_head_dim": 7}, "geo_head_dim"),
        ({"mode": "standard", "sem_head_dim": 4}, "sem_head_dim"),
        ({"mode": "decoupled", "sem_head_dim": 0}, "sem_head_dim"),
        ({"mode": "gqa", "n_heads": 4, "n_kv_heads": 4}, "n_kv_heads"),
        ({"tie_qk": True, "n_heads": 4, "n_kv_heads": 2}, "tie_qk"),
    ],
)
def test_combinations_that_are_refused(kwargs: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttentionConfig(**kwargs)
    assert caught.value.path == path


def test_the_model_width_is_said_once() -> None:
    with pytest.raises(ConfigError, match=r"attention.d_model: 64 differs from model.d_model=128"):
        ModelConfig(d_model=128, attention=AttentionConfig(n_heads=4, d_model=64))
    with pytest.raises(ConfigError, match="d_model: is missing"):
        AttentionConfig().resolved()


@pytest.mark.parametrize(
    ("config", "d_ff"),
    [
        (ModelConfig(d_model=192), 512),
        (ModelConfig(d_model=768, mlp="gelu", attention=AttentionConfig(n_heads=12)), 3072),
        (ModelConfig(d_model=128, d_ff=100, attention=AttentionConfig(n_heads=4)), 100),
        (ModelConfig(d_model=128, attention=AttentionConfig(n_heads=4)), 344),
    ],
)
def test_feed_forward_width(config: ModelConfig, d_ff: int) -> None:
    full = config.resolved(vocab_size=256)
    assert full.d_ff == d_ff
    assert full.embed_dim == config.d_model
    assert full.vocab_size == 256
    assert full.attention.d_model == config.d_model
    typed = full.as_typed()
    assert type(typed) is ModelConfig
    assert (typed.resolved(), typed.d_ff) == (full, d_ff)


def test_the_vocabulary_is_known_and_large_enough() -> None:
    assert ModelConfig(vocab_size=300).resolved(vocab_size=256).vocab_size == 300
    with pytest.raises(ConfigError, match="vocab_size: 200 is smaller than the tokenizer's 256"):
        ModelConfig(vocab_size=200).resolved(vocab_size=256)
    with pytest.raises(ConfigError, match="vocab_size: is missing"):
        ModelConfig().resolved()


@pytest.mark.parametrize(
    ("context", "device", "expected"),
    [
        (128, "cpu", (3072, 64, 512, 128)),
        (4096, "cpu", (3072, 64, 512, 128)),
        (8192, "cpu", (6144, 64, 512, 128)),
        (8191, "cuda", (6144, 64, 512, 256)),
        (8192, "cuda:1", (6144, 128, 1024, 256)),
    ],
)
def test_long_sequence_defaults(context: int, device: str, expected: tuple[int, int, int, int]) -> None:
    knobs = LongSequenceConfig().resolved(context=context, device=device)
    assert (knobs.threshold, knobs.mem_block, knobs.local_window, knobs.q_chunk) == expected
    assert knobs.enabled
    kept = LongSequenceConfig(threshold=1, mem_block=2, local_window=0, q_chunk=4)
    assert kept.resolved(context=context, device=device).as_typed() == kept
    again = knobs.resolved(context=1, device="cpu")
    assert again == knobs, "what is resolved stays"


def test_the_shape_checks_what_is_derived() -> None:
    derived = AttentionConfig(mode="gqa", d_model=32, n_heads=8, tie_qk=True)
    with pytest.raises(ConfigError, match="n_heads=8 and n_kv_heads=2"):
        _ = derived.shape


def test_grad_accum_divides_the_batch() -> None:
    assert TrainingConfig(batch_size=12, grad_accum=4).grad_accum == 4
