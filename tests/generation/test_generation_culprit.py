"""Logits that are not finite: the weight or the plugin that made them is named, not the weights at large."""

from __future__ import annotations

import attrs
import pytest
import torch
from broken_plugins.decode_backends import Dense, DensePlugin

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import GenerationConfig
from dba_core.errors import CheckpointError, DBAError, PluginError
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch

FP32 = "ksem=fp32,kgeo=fp32,v=fp32"
STEPS = GenerationConfig(max_new_tokens=6, temperature=0.0)


class TiresAt(Dense):
    """Right up to rows of 5 tokens, then NaN: the first call over a cache is sound."""

    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null)
        return attrs.evolve(done, out=done.out * (torch.nan if cache.length > 5 else 1.0))


def model(n_layers: int, backend: str) -> LanguageModel:
    registry = Registry()
    registry.register(
        "decode_backend", DensePlugin(TiresAt, name="tires"), distribution="acme", version="2.3"
    )
    config = ModelConfig(
        vocab_size=30,
        context=16,
        n_layers=n_layers,
        d_model=16,
        attention=AttentionConfig(n_heads=2, sem_head_dim=4, geo_head_dim=4, v_head_dim=8),
        train_long_seq=LongSequenceConfig(enabled=False),
    )
    layers = {"0": {"decode_backend": PluginChoice(backend)}}
    choices = PluginChoices(decode_backend=PluginChoice("streaming"), layers=layers)
    return LanguageModel(config, registry=registry, plugins=choices, seed=1)


@pytest.mark.parametrize("n_layers", [1, 2])  # with two, layer 1 refuses the NaN as a key before any logits
def test_a_backend_that_fails_late_is_named(n_layers: int) -> None:
    broken = model(n_layers, "tires")
    with pytest.raises(
        PluginError, match=r"^decode_backend 'tires' of acme 2\.3 returned out with a NaN"
    ) as caught:
        generate(broken, [[1, 2, 3]], STEPS, kv_policy=FP32)
    assert caught.value.exit_code == 4
    assert not any(attention.check_every_call(False) for attention in broken.attentions)


def test_a_weight_that_is_damaged_is_named() -> None:
    damaged = model(1, "streaming")
    with torch.no_grad():
        damaged.ln_f.weight[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"ln_f\.weight holds 1 of 16 values that are not finite"):
        generate(damaged, [[1, 2, 3]], STEPS, kv_policy=FP32)


def test_arithmetic_that_overflows_blames_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = model(1, "streaming")
    monkeypatch.setattr(sound, "logits", lambda x: x.new_full((len(x), 30), torch.inf))
    with pytest.raises(DBAError, match=r"Every weight is finite.*arithmetic in float32") as caught:
        generate(sound, [[1, 2, 3]], STEPS, kv_policy=FP32)
    assert type(caught.value) is DBAError
