"""Who takes part in `dba bench model`, and ours among them: one model, one cache, one way to compute.

prefill   prompts go into an empty cache, and one token of each comes out
decode    greedy tokens after a filled cache, which is then as before
loss      -log p of held-out tokens, nats, with the weights and the cache that are timed
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs
import torch
from torch import nn

from dba_core.cache.bytes import cache_bytes
from dba_core.cache.kv_cache import KVCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import GenerationConfig
from dba_core.data.tokenizers import Tokens
from dba_core.errors import LongPromptWarning
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel, inference
from dba_plugins.bench.plain_gpt import PlainGPT
from dba_plugins.convert.text_loss import text_loss

#: The token that the first step of a turn reads, in every model.
FIRST = 1
RECOMPUTED, GPT = "run, recomputing its context", "plain GPT, recomputing its context"
_FILL = 4096  # tokens that are appended at once
Prompts = list[list[int]]


@attrs.frozen(kw_only=True)
class Turn:
    """call: one turn, given the round's number; everything is then as before. backend: that decodes."""

    call: Callable[[int], None]
    backend: str | None = None


class Contestant(Protocol):
    """ours: whether it is this library. weight_bytes: of its weights in memory, each counted once."""

    @property
    def name(self) -> str: ...

    @property
    def ours(self) -> bool: ...

    @property
    def weight_bytes(self) -> int: ...

    def left_out(self, *, phase: str, batch: int, length: int) -> str | None:
        """Of what there is no row, and why, where it does not take part here."""
        ...

    def cache_bytes(self, *, batch: int, length: int) -> int:
        """Keys and values of so many tokens; 0 where none are kept."""
        ...

    def work_bytes(self, *, batch: int, length: int) -> int:
        """What a prefill needs beside them, at least."""
        ...

    def prefill(self, prompts: Prompts) -> Turn: ...

    def decode(self, prompts: Prompts, *, new_tokens: int) -> Turn:
        """After as many cached tokens as the prompts have, which are all of one length."""
        ...

    def loss(self, tokens: Tokens, *, context: int, limit: int) -> float | None:
        """Over windows of `context`, of the first `limit` targets; None for weights that nobody trained."""
        ...


def ours_name(model: str, policy: KVCachePolicy, *, weights: str | None) -> str:
    """ "source, int8 weights, fp16 cache"; a policy of several formats is written out."""
    if weights is not None:
        model = f"{model}, {weights} weights"
    parts = [part.partition("=") for part in policy.short.split(",")]
    formats = {value for key, _, value in parts if key in ("ksem", "kgeo", "v")}
    if len(formats) == 1 and not policy.residual:
        return f"{model}, {formats.pop()} cache"
    return f"{model}, {policy.short.removesuffix(',resid=0')}"


class Ours:
    """A model of this library under one KV policy."""

    ours = True

    def __init__(self, name: str, model: LanguageModel, policy: KVCachePolicy) -> None:
        self.name = ours_name(name, policy, weights=model.weight_format)
        self._model, self._policy = model, policy

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    def left_out(self, *, phase: str, batch: int, length: int) -> str | None:
        return None

    def cache_bytes(self, *, batch: int, length: int) -> int:
        attentions = self._model.attentions
        return batch * cache_bytes(attentions[0].shape, len(attentions), self._policy, length)

    def work_bytes(self, *, batch: int, length: int) -> int:
        return 0

    def prefill(self, prompts: Prompts) -> Turn:
        model, once = self._model, GenerationConfig(max_new_tokens=1, temperature=0.0)
        cache = model.new_cache(batch=len(prompts), capacity=len(prompts[0]) + 1, policy=self._policy)

        def call(_round: int) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LongPromptWarning)  # what comes out is not read
                generate(model, prompts, once, cache=cache)
            cache.truncate(0)

        return Turn(call=call, backend=model.decode_backends(cache))

    def decode(self, prompts: Prompts, *, new_tokens: int) -> Turn:
        batch, length = len(prompts), len(prompts[0])
        cache = filled_cache(self._model, self._policy, batch=batch, length=length, room=new_tokens + 1)
        config = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0)

        def call(_round: int) -> None:
            generate(self._model, [[FIRST]] * batch, config, cache=cache)
            cache.truncate(length)

        return Turn(call=call, backend=self._model.decode_backends(cache))

    def loss(self, tokens: Tokens, *, context: int, limit: int) -> float | None:
        """Through a cache of the policy."""
        return text_loss(self._model, tokens, context=context, limit_tokens=limit, policy=self._policy).nll


class Recomputing:
    """A model that keeps no cache: every token costs a pass over the newest tokens of its context."""

    ours = False

    def __init__(
        self, name: str, model: nn.Module, context: int, step: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """step: tokens [B,T] -> logits [B,V] after the last one."""
        self.name, self._model, self._context, self._step = name, model, context, step

    @property
    def weight_bytes(self) -> int:
        return tensor_bytes(self._model)

    def left_out(self, *, phase: str, batch: int, length: int) -> str | None:
        if phase == "prefill" and length > self._context:
            return f"more than the {self._context:,} tokens of its context"
        return None

    def cache_bytes(self, *, batch: int, length: int) -> int:
        return 0

    def work_bytes(self, *, batch: int, length: int) -> int:
        return 0

    def prefill(self, prompts: Prompts) -> Turn:
        return self.decode(prompts, new_tokens=1)

    def decode(self, prompts: Prompts, *, new_tokens: int) -> Turn:
        tokens = torch.tensor(prompts)  # [B, T]

        def call(_round: int) -> None:
            greedy(self._step, tokens, new_tokens=new_tokens, context=self._context)

        return Turn(call=call)

    def loss(self, tokens: Tokens, *, context: int, limit: int) -> float | None:
        return None


def recomputing(model: LanguageModel) -> Recomputing:
    """Our own model without its cache."""

    def step(tokens: torch.Tensor) -> torch.Tensor:
        return model.logits(model.hidden(tokens)[:, -1:])[:, 0]

    return Recomputing(RECOMPUTED, model, model.config.context, step)


def plain_gpt(model: LanguageModel) -> Recomputing:
    """A plain GPT of the same size: learned positions, no cache. Random weights."""
    gpt = PlainGPT(model.config).eval()
    return Recomputing(GPT, gpt, model.config.context, gpt.next_logits)


def greedy(
    step: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, *, new_tokens: int, context: int
) -> torch.Tensor:
    """tokens [B,T] and `new_tokens` more [B,T+N]; a step sees the newest `context` tokens."""
    with torch.no_grad():
        for _ in range(new_tokens):
            token = step(tokens[:, -context:]).argmax(-1, keepdim=True)  # [B, 1]
            tokens = torch.cat([tokens, token], 1)
    return tokens


def filled_cache(
    model: LanguageModel, policy: KVCachePolicy, *, batch: int, length: int, room: int
) -> KVCache:
    """A cache with `length` random tokens in every layer and room for `room` more."""
    cache = model.new_cache(batch=batch, capacity=length + room, policy=policy, rollback=max(room, 64))
    generator = torch.Generator().manual_seed(0)
    with inference(model):
        for attention, layer in zip(model.attentions, cache.layers, strict=True):
            writer = attention.decode_backend(layer).writer
            for start in range(0, length, _FILL):
                count = min(_FILL, length - start)
                k_sem, k_geo, v = (
                    torch.randn(batch, spec.n_heads, count, spec.head_dim, generator=generator)
                    for spec in layer.specs
                )
                layer.append(k_sem, k_geo, v, writer=writer)
    return cache


def tensor_bytes(model: nn.Module) -> int:
    """Of parameters and buffers; tensors that share memory are counted once."""
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors(model)}
    return sum(storage.nbytes() for storage in kept.values())


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
