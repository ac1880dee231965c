"""The module around the paths: parameters and names, plugins given in any form, copies, the long path."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from attention_oracle import make_layer
from tolerances import TOL

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.errors import ConfigError, PluginError, UnsupportedError
from dba_core.registry.choice import PluginChoice

pytestmark = pytest.mark.torch

SIZES = {"d_model": 24, "n_heads": 4, "sem_head_dim": 2, "geo_head_dim": 4, "v_head_dim": 5}


def names(layer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in layer.state_dict().items()}


def test_parameter_names_and_shapes() -> None:
    config = AttentionConfig(n_kv_heads=2, learned_temperature=True, **SIZES)
    assert names(DecoupledAttention(config, null_token="learned")) == {
        "q_sem.weight": (8, 24),
        "k_sem.weight": (4, 24),
        "q_geo.weight": (16, 24),
        "k_geo.weight": (8, 24),
        "v_proj.weight": (10, 24),
        "out_proj.weight": (24, 20),
        "logit_scale": (4,),
        "gate.decoupled_gate_logit": (4,),
        "gate.decoupled_gate_proj.weight": (4, 24),
        "null_token.k_sem_null": (2, 2),
        "null_token.k_geo_null": (2, 4),
        "null_token.v_null": (2, 5),
    }
    tied = DecoupledAttention(AttentionConfig(tie_qk=True, **SIZES), gate="static")
    assert names(tied) == {
        "q_sem.weight": (8, 24),
        "q_geo.weight": (16, 24),
        "v_proj.weight": (20, 24),
        "out_proj.weight": (24, 20),
        "gate.decoupled_gate_logit": (4,),
    }
    standard = DecoupledAttention(
        AttentionConfig(mode="standard", d_model=24, n_heads=4), null_token="learned"
    )
    assert names(standard) == {
        "q_geo.weight": (24, 24),
        "k_geo.weight": (24, 24),
        "v_proj.weight": (24, 24),
        "out_proj.weight": (24, 24),
        "null_token.k_geo_null": (4, 6),
        "null_token.v_null": (4, 6),
    }


def test_a_new_layer_is_neutral_in_gate_null_token_and_temperature() -> None:
    torch.manual_seed(1)
    with_all = DecoupledAttention(AttentionConfig(learned_temperature=True, **SIZES), null_token="learned")
    without = DecoupledAttention(AttentionConfig(**SIZES), gate="none")
    without.load_state_dict(with_all.state_dict(), strict=False)
    x = torch.randn(2, 7, 24)
    assert torch.equal(with_all.gate(x), torch.full((2, 4, 7, 1), 0.5))
    heads = with_all._heads(x, *with_all.rope.span(0, 7, x))
    plain = without._heads(x, *without.rope.span(0, 7, x))
    assert torch.equal(heads.q_sem, plain.q_sem)
    assert torch.equal(heads.q_geo, plain.q_geo)
    null = with_all.null_token()
    assert all(t.abs().max() == 0 for t in (null.k_sem, null.k_geo, null.v))


def test_selections_say_what_auto_chose() -> None:
    decoupled = DecoupledAttention(AttentionConfig(**SIZES))
    assert {kind: s.name for kind, s in decoupled.selections.items()} == {
        "gate": "causal",
        "null_token": "none",
    }
    standard = DecoupledAttention(AttentionConfig(mode="standard", d_model=24, n_heads=4))
    chosen = standard.selections["gate"]
    assert chosen.name == "none"
    assert "sem_head_dim" in str(chosen.passed_over[0])
    assert standard.gate is None
    with pytest.raises(UnsupportedError, match="no semantic path"):
        DecoupledAttention(AttentionConfig(mode="standard", d_model=24, n_heads=4), gate="causal")
    with pytest.raises(PluginError, match="Did you mean 'learned'"):
        DecoupledAttention(AttentionConfig(**SIZES), null_token="lerned")


def test_plugins_as_name_choice_and_instance() -> None:
    config = AttentionConfig(**SIZES)
    chosen = DecoupledAttention(config, gate=PluginChoice("causal", options={"init": 0.75}))
    x = torch.randn(1, 3, 24)
    torch.testing.assert_close(chosen.gate(x), torch.full((1, 4, 3, 1), 0.75))
    given = DecoupledAttention(config, gate=chosen.gate)
    assert given.gate is chosen.gate
    assert "gate" not in given.selections
    with pytest.raises(ConfigError, match="init"):
        DecoupledAttention(config, gate=PluginChoice("causal", options={"init": 1.5}))


def test_config_is_resolved_and_the_table_is_in_no_state() -> None:
    layer = DecoupledAttention(AttentionConfig(mode="gqa", d_model=24, n_heads=4))
    assert (layer.config.n_kv_heads, layer.config.geo_head_dim, layer.config.v_head_dim) == (1, 6, 6)
    before = set(layer.state_dict())
    layer(torch.randn(1, 500, 24))
    assert set(layer.state_dict()) == before


def test_copies_and_saved_layers_compute_the_same() -> None:
    layer = make_layer(mode="decoupled", null_token="learned")
    x = torch.randn(2, 6, 24)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = make_layer(seed=5, mode="decoupled", null_token="learned")
    assert not torch.equal(other(x), y)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), y)


def test_frequencies_per_kv_head_on_every_path() -> None:
    """What a converted model needs: other frequencies in each KV head, 0 for an unrotated pair."""
    sizes = {"n_kv_heads": 2, "sem_head_dim": 3, "geo_head_dim": 4, "v_head_dim": 6, "rope_table": True}
    layer = make_layer(mode="decoupled", **sizes)
    x = torch.randn(2, 9, 24)
    usual = layer(x)
    layer.rope_frequencies.frequencies.copy_(torch.tensor([[1.0, 0.0], [0.3, 0.01]]))
    y = layer(x)
    assert (y - usual).abs().max() > 1e-2
    angles = torch.arange(9).double()[:, None, None] * layer.rope.frequencies
    plain = make_layer(mode="decoupled", **sizes)
    for head in range(2):  # a layer that rotates all heads as this one does is right in this head's queries
        plain.rope_frequencies.frequencies.copy_(layer.rope.frequencies[head])
        mine, one = (a._heads(x, *a.rope.span(0, 9, x)) for a in (layer, plain))
        assert torch.equal(mine.q_geo[:, 2 * head : 2 * head + 2], one.q_geo[:, 2 * head : 2 * head + 2])
        assert torch.equal(mine.k_geo[:, head], one.k_geo[:, head])
        torch.testing.assert_close(layer.rope.span(0, 9, x)[0][:, head], angles[:, head].cos().float())
    for split in ((9,), (4, 1, 4), (1,) * 9):
        cache = layer.new_cache(batch=2, capacity=9, policy="ksem=fp32,kgeo=fp32,v=fp32")
        cached = torch.cat([layer(chunk, cache=cache) for chunk in x.split(split, dim=1)], dim=1)
        torch.testing.assert_close(cached, y.detach(), **TOL["float32"])


class MeanOfBlocks(torch.nn.Module):
    def forward(self, k_sem, v):
        return k_sem.mean(dim=3), v.mean(dim=3)


LONG = LongSequenceConfig(threshold=16, mem_block=4, local_window=4, q_chunk=4)


def test_the_long_path_is_for_training_from_the_threshold_without_mask_or_cache() -> None:
    layer = DecoupledAttention(
        AttentionConfig(**SIZES), summarizer=MeanOfBlocks(), train_long_seq=LONG, context=16
    )
    cache = layer.new_cache(batch=1, capacity=16, policy="ksem=fp32,kgeo=fp32,v=fp32")
    mask = torch.ones(16, 16, dtype=torch.bool)
    assert layer._long_path(16, None) is not None
    assert layer._long_path(15, None) is None
    assert layer._long_path(16, mask) is None
    x = torch.randn(1, 16, 24)
    approximate, cached = layer(x), layer(x, cache=cache)
    layer.eval()
    assert layer._long_path(16, None) is None
    exact = layer(x)
    torch.testing.assert_close(cached, exact, **TOL["float32"])
    torch.testing.assert_close(approximate[:, :4], exact[:, :4], **TOL["float32"])  # all within the window
    assert (approximate[:, 12:] - exact[:, 12:]).abs().max() > 1e-4


def test_where_the_long_path_is_off() -> None:
    config = AttentionConfig(**SIZES)
    assert DecoupledAttention(config).long_sequence is None
    off = DecoupledAttention(config, train_long_seq=LongSequenceConfig(enabled=False, threshold=1))
    assert off.long_sequence is None
    no_path = DecoupledAttention(AttentionConfig(mode="standard", d_model=24, n_heads=4), train_long_seq=LONG)
    assert no_path.long_sequence is None
    assert no_path._long_path(100, None) is None


def test_the_summarizer_is_chosen_always_and_built_where_it_is_reached() -> None:
    config = AttentionConfig(**SIZES)
    far = DecoupledAttention(config, summarizer="mean", train_long_seq=LongSequenceConfig(), context=128)
    assert far.long_sequence.threshold == 3072
    assert far.selections["summarizer"].name == "mean"
    assert far.summarizer is None
    near = DecoupledAttention(config, summarizer="mean", train_long_seq=LongSequenceConfig(), context=4096)
    assert near.selections["summarizer"].name == "mean"
    assert near.summarizer is not None
    with pytest.raises(PluginError, match="Did you mean"):
        DecoupledAttention(config, summarizer="meen", train_long_seq=LongSequenceConfig(), context=128)
