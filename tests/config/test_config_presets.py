"""The presets: listed, valid, and the shapes that their recipes state."""

from __future__ import annotations

import pytest

from dba_core.config import AttentionConfig, RunConfig, load_config
from dba_core.config.loading import list_presets, load_preset
from dba_core.errors import ConfigError

NAMES = ["default", "paper-baseline", "paper-bottleneck", "paper-decoupled", "paper-gqa", "shakespeare-cpu"]


def full_attention(preset: str, *sets: str) -> AttentionConfig:
    model = load_config(preset=preset, sets=sets).config.model
    return model.resolved(vocab_size=256).attention


def cached_values(attention: AttentionConfig) -> int:
    """Values that one token leaves in the cache of one layer."""
    shape = attention.shape
    return shape.n_kv_heads * (shape.sem_head_dim + shape.geo_head_dim + shape.v_head_dim)


def test_all_are_listed_with_one_line_each() -> None:
    presets = list_presets()
    assert [preset.name for preset in presets] == NAMES
    for preset in presets:
        assert 10 < len(preset.summary) <= 100
        assert not preset.summary.startswith("#")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid_and_names_its_run(name: str) -> None:
    loaded = load_config(preset=name)
    assert loaded.config.name == name
    assert loaded.origins["name"] == f"preset {name}"
    assert set(load_preset(name)) <= set(RunConfig().to_dict())


def test_default_is_the_default() -> None:
    assert load_config(preset="default").config == RunConfig()


def test_an_unknown_preset_is_answered_with_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'paper-gpa'. Did you mean 'paper-gqa'"):
        load_preset("paper-gpa")


def test_shakespeare_follows_the_recipe() -> None:
    config = load_config(preset="shakespeare-cpu").config
    model, training = config.model, config.training
    assert (model.n_layers, model.attention.n_heads, model.d_model, model.context) == (4, 4, 128, 64)
    assert (training.batch_size, training.steps, training.lr, training.warmup_steps) == (12, 2000, 1e-3, 100)
    assert training.lr * training.min_lr_ratio == pytest.approx(1e-4)
    assert training.beta2 == 0.99
    assert model.dropout == model.attention.dropout == 0.0


def test_shakespeare_caches_a_quarter_of_standard() -> None:
    decoupled = full_attention("shakespeare-cpu")
    assert (decoupled.sem_head_dim, decoupled.geo_head_dim, decoupled.v_head_dim) == (2, 6, 8)
    standard = full_attention("shakespeare-cpu", "model.attention.mode=standard")
    assert (cached_values(decoupled), cached_values(standard)) == (64, 256)


@pytest.mark.parametrize(
    ("preset", "mode", "kv_heads", "sem", "geo", "v"),
    [
        ("paper-baseline", "standard", 12, 0, 64, 64),
        ("paper-bottleneck", "bottleneck", 12, 0, 12, 12),
        ("paper-decoupled", "decoupled", 12, 4, 8, 12),
        ("paper-gqa", "gqa", 2, 0, 64, 64),
    ],
)
def test_paper_shapes(preset: str, mode: str, kv_heads: int, sem: int, geo: int, v: int) -> None:
    model = load_config(preset=preset).config.model.resolved(vocab_size=50304)
    assert (model.n_layers, model.d_model, model.d_ff, model.context) == (12, 768, 3072, 1024)
    attention = model.attention
    assert (attention.mode, attention.n_heads, attention.n_kv_heads) == (mode, 12, kv_heads)
    assert (attention.sem_head_dim, attention.geo_head_dim, attention.v_head_dim) == (sem, geo, v)


def test_paper_presets_differ_in_attention_and_name_only() -> None:
    def rest(name: str) -> dict[str, object]:
        data = load_config(preset=name).config.to_dict()
        del data["model"]["attention"], data["name"]
        return data

    paper = [name for name in NAMES if name.startswith("paper-")]
    assert all(rest(name) == rest(paper[0]) for name in paper)
