"""A Llama of Hugging Face transformers, to be measured beside ours. Needs extra `bench`.

eager, static     matrix products and softmax, float32, its StaticCache
sdpa, static      torch's fused attention instead
sdpa, dynamic     its DynamicCache, which grows by copying
bf16, static      sdpa with weights, hidden states and cache in bfloat16
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from typing import Any

import attrs
import torch
import torch.nn.functional as F

from dba_core.config.model import ModelConfig
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.distribution import install_command
from dba_core.model.pretrained import PretrainedModel
from dba_plugins.bench.model.contestants import FIRST, Prompts, Turn, tensor_bytes
from dba_plugins.checkpoints.llama_names import to_huggingface

PACKAGE = "transformers"


def why_left_out() -> str | None:
    """None where the package is installed."""
    if importlib.util.find_spec(PACKAGE) is not None:
        return None
    return f"transformers was left out: it is not installed; {install_command('bench')}"


def build_llama(config: ModelConfig, *, seed: int) -> Any:
    """A Llama of the width, depth, feed-forward, vocabulary, heads and value width of `config`."""
    transformers = importlib.import_module(PACKAGE)
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


@attrs.frozen
class Variant:
    """One way to run a Llama. attention: transformers' name for it."""

    name: str
    attention: str
    static: bool
    dtype: torch.dtype = torch.float32


VARIANTS = (
    Variant("transformers, eager, static cache", "eager", True),
    Variant("transformers, sdpa, static cache", "sdpa", True),
    Variant("transformers, sdpa, dynamic cache", "sdpa", False),
    Variant("transformers, bf16, static cache", "sdpa", True, torch.bfloat16),
)


def variant_of(llama: Any, variant: Variant) -> Any:
    """The model run this way; those of the same dtype share their weights."""
    if variant.dtype == llama.dtype:
        made = copy.deepcopy(llama, {id(each): each for each in llama.parameters()})
    else:
        made = copy.deepcopy(llama).to(variant.dtype)
        made.model.rotary_emb.inv_freq = llama.model.rotary_emb.inv_freq.clone()  # as when it is loaded
    made.set_attn_implementation(variant.attention)
    return made


class TransformersLlama:
    """trained: whether its weights are those of a trained model."""

    ours = False

    def __init__(self, llama: Any, variant: Variant, *, trained: bool) -> None:
        self.name = variant.name
        self._model, self._static, self._trained = variant_of(llama, variant), variant.static, trained
        self._eager = variant.attention == "eager"

    @property
    def weight_bytes(self) -> int:
        return tensor_bytes(self._model)

    def left_out(self, *, phase: str, batch: int, length: int) -> str | None:
        return None

    def cache_bytes(self, *, batch: int, length: int) -> int:
        config = self._model.config
        tokens = 2 * batch * length * config.num_hidden_layers
        return int(tokens * config.num_key_value_heads * config.head_dim * self._model.dtype.itemsize)

    def work_bytes(self, *, batch: int, length: int) -> int:
        """Scores, the mask added to them, and the softmax of them."""
        heads = self._model.config.num_attention_heads
        return 3 * batch * heads * length * length * self._model.dtype.itemsize if self._eager else 0

    def prefill(self, prompts: Prompts) -> Turn:
        tokens = torch.tensor(prompts)
        options = importlib.import_module(PACKAGE).GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if self._static else "dynamic",
        )

        def call(_round: int) -> None:
            with torch.no_grad():
                self._model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), generation_config=options
                )

        return Turn(call=call)

    def decode(self, prompts: Prompts, *, new_tokens: int) -> Turn:
        batch, length = len(prompts), len(prompts[0])
        return Turn(
            call=LlamaGenerator(
                self._model, batch=batch, length=length, new_tokens=new_tokens, static=self._static
            )
        )

    def loss(self, tokens: Tokens, *, context: int, limit: int) -> float | None:
        if not self._trained:
            return None
        total, seen = 0.0, 0
        with torch.no_grad():
            for x, y in held_out_windows(tokens, context, limit_tokens=limit):
                logits = self._model(x, use_cache=False).logits[0].double()  # [T, V]
                total += float(F.cross_entropy(logits, y[0], reduction="sum"))
                seen += y.numel()
        return total / seen


class LlamaGenerator:
    """Generates with a cache of `length` random tokens, the same before every call.

    static: transformers' StaticCache, allocated once; else its DynamicCache, which grows by copying.
    """

    def __init__(self, model: Any, *, batch: int, length: int, new_tokens: int, static: bool) -> None:
        self._transformers: Any = importlib.import_module(PACKAGE)
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
        keys, values = (torch.randn(size, generator=self._generator) for _ in "kv")
        return keys.to(self._model.dtype), values.to(self._model.dtype)

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
