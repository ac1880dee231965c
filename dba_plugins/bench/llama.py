"""A Llama of Hugging Face transformers with a filled cache, to generate beside ours. Needs extra `bench`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from dba_core.config.model import ModelConfig
from dba_core.distribution import install_command
from dba_core.errors import UnsupportedError
from dba_core.model.pretrained import PretrainedModel
from dba_plugins.checkpoints.llama_names import to_huggingface

#: The token that the first step reads, in both models.
FIRST = 1


def require_transformers() -> Any:
    """The package, or UnsupportedError that says how to install it."""
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError(
            "this measurement compares with the package 'transformers', which is not installed. Install it: "
            + install_command("bench")
        )
    return importlib.import_module("transformers")


def build_llama(config: ModelConfig, *, seed: int) -> Any:
    """A Llama of the width, depth, feed-forward, vocabulary, heads and value width of `config`."""
    transformers = require_transformers()
    attention = config.attention.resolved(d_model=config.d_model)
    llama = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads,
        head_dim=attention.v_head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": attention.rope_theta},
        max_position_embeddings=1 << 20,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(llama).eval()


def llama_of(source: PretrainedModel) -> Any:
    """The Llama that `source` is, with its weights and frequencies."""
    llama = build_llama(source.config, seed=0)
    own = llama.state_dict()
    with torch.no_grad():
        for name in source.opened.weights:
            own[to_huggingface(name)].copy_(source.load(name))
        if source.frequencies is not None:
            llama.model.rotary_emb.inv_freq.copy_(source.frequencies[0])
    return llama


class LlamaGenerator:
    """Generates with a cache of `length` random tokens, the same before every call.

    static: transformers' StaticCache, allocated once; else its DynamicCache, which grows by copying.
    """

    def __init__(self, model: Any, *, batch: int, length: int, new_tokens: int, static: bool) -> None:
        self._transformers = require_transformers()
        self._model, self._batch, self._length, self._new = model, batch, length, new_tokens
        self._tokens = torch.full((batch, length + 1), FIRST)  # of the cached ones only their number counts
        self._generator = torch.Generator().manual_seed(0)
        self._cache = self._static_cache() if static else self._dynamic_cache()

    @property
    def length(self) -> int:
        """Tokens that the cache holds in every row."""
        return int(self._cache.get_seq_length())

    def __call__(self, _round: int) -> None:
        self.generate()

    def generate(self) -> list[list[int]]:
        """Greedy tokens of every row, after the cached ones and FIRST; the cache is then as before."""
        options = self._transformers.GenerationConfig(
            max_new_tokens=self._new, do_sample=False, pad_token_id=0
        )
        with torch.no_grad():
            tokens = self._model.generate(
                self._tokens,
                attention_mask=torch.ones_like(self._tokens),
                cache=self._cache,
                generation_config=options,
            )
        self._cache.crop(self._length - self.length)
        new: list[list[int]] = tokens[:, self._length + 1 :].tolist()
        return new

    def _random(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._model.config
        size = (self._batch, config.num_key_value_heads, self._length, config.head_dim)
        return torch.randn(size, generator=self._generator), torch.randn(size, generator=self._generator)

    def _dynamic_cache(self) -> Any:
        cache = self._transformers.DynamicCache(config=self._model.config)
        for layer in range(self._model.config.num_hidden_layers):
            cache.update(*self._random(), layer)
        return cache

    def _static_cache(self) -> Any:
        room = self._length + self._new + 1
        cache = self._transformers.StaticCache(config=self._model.config, max_cache_len=room)
        for number in range(self._model.config.num_hidden_layers):
            cache.update(*self._random(), number)
        return cache
