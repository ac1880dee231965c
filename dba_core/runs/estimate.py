"""What a run costs by arithmetic alone: parameters, FLOPs, memory of training, the KV cache. No torch.

    forward(t)  = 2 * M + sum over layers of 2 * H * (Ds + Dg + Dv) * (S + 1) / 2
    training(t) = 3 * forward(t)                      the backward pass is two products for each one forward

M: the entries of all matrices that multiply a token's vector: projections, MLP, gate, output head. A tied
embedding counts once, as the head; an untied one is a lookup and counts nothing, like norms, null tokens and
the summarizer, which is not part of the plain path. S: the context; a query sees (S + 1) / 2 keys on average.
One multiply-add is 2 FLOPs.

    at a step's end     4 P weights + 4 P gradients + 8 P AdamW
    at its middle       4 P weights + 8 P AdamW (from the second step on) + activations + 8 B T V logits

P: parameters. B: sequences of one forward pass, T: context, V: vocabulary. Logits count twice, as they
are and as log-probabilities, in float32. Activations: what every layer keeps of a token for the backward
pass, its attention weights and the gate's inputs left out. The larger of the two moments is a lower bound:
need <= peak, and the peak of what torch allocates for a run is less than three times it.

Answers are plain data under the names that `summary.json` has; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import attrs

from dba_core.cache.bytes import (
    LONG_CONTEXT,
    bytes_per_token,
    cache_bytes,
    memory_table,
    residual_bytes,
    standard_bytes_per_token,
    tensor_bytes_per_token,
)
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.config.run import RunConfig
from dba_core.contracts import AttentionShape

_PREFERRED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32"
#: The window of the default policy takes no more than this part of the fp16 cache at the context.
_WINDOW_PART = 1 / 8
_FLOAT = 4
_MOMENTS = 8  # AdamW's two
_NOT_MULTIPLIED = (".null_token.", ".summarizer.")
_EMBEDDING = "tok_emb.weight"


def model_cost(
    parameters: Iterable[tuple[str, tuple[int, ...]]],
    *,
    shape: AttentionShape,
    n_layers: int,
    context: int,
    tied_embeddings: bool,
) -> dict[str, int]:
    """Of a model with these parameters, given as (dotted name, shape); FLOPs per token at full context."""

    def is_multiplied(name: str, size: tuple[int, ...]) -> bool:
        if name == _EMBEDDING:
            return tied_embeddings
        return len(size) == 2 and not any(part in name for part in _NOT_MULTIPLIED)

    named = list(parameters)
    multiplied = sum(prod(size) for name, size in named if is_multiplied(name, size))
    widths = shape.sem_head_dim + shape.geo_head_dim + shape.v_head_dim
    forward = 2 * multiplied + n_layers * shape.n_heads * widths * (context + 1)
    return {
        "parameters": sum(prod(size) for _, size in named),
        "forward_flops_per_token": forward,
        "training_flops_per_token": 3 * forward,
    }


def training_need(config: RunConfig, *, parameters: int, processes: int = 1) -> dict[str, int]:
    """Bytes of one process, at least, of a run whose model has so many parameters.

    total: of the larger moment, not the sum. logits, activations: of one forward pass in training. data: of
    one batch of token numbers.
    """
    model, training = config.model.resolved(), config.training
    weights, gradients, optimizer = _FLOAT * parameters, _FLOAT * parameters, _MOMENTS * parameters
    tokens = max(1, training.batch_size // (processes * training.grad_accum)) * model.context
    # of every layer and token: the inputs of both norms and of the projections behind them, queries, keys,
    # values, the attention's output, and two of the feed-forward part's width
    per_token = 4 * model.d_model + sum(_widths(model)) + 2 * model.d_ff
    kept = 0 if training.compile else tokens * model.n_layers * per_token
    forward = {
        "activations": kept * (2 if config.dtype == "bfloat16" else _FLOAT),
        "logits": 2 * _FLOAT * tokens * model.vocab_size,
        "data": 24 * training.batch_size * model.context // processes,
    }
    if not training.steps:
        gradients, optimizer, forward = 0, 0, dict.fromkeys(forward, 0)
    middle = weights + sum(forward.values())
    middle += optimizer if training.steps > 1 else 0
    middle += gradients if training.grad_accum > 1 else 0
    total = max(middle, weights + gradients + optimizer)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, **forward, "total": total}


def _widths(model: ModelConfig) -> tuple[int, int, int]:
    """Numbers of one token in one layer: queries, cached keys, cached values with the attention's output."""
    shape = model.attention.shape
    sem_heads, kv_heads, v_heads = shape.cached_heads
    queries = shape.n_heads * (shape.sem_head_dim + shape.geo_head_dim)
    keys = sem_heads * shape.sem_head_dim + kv_heads * shape.geo_head_dim
    return queries, keys, (v_heads + shape.n_heads) * shape.v_head_dim


def least_parameters(model: ResolvedModel) -> int:
    """Entries of the matrices of a model that no plugin makes, norms and biases left out."""
    queries, keys, values = _widths(model)
    attention = model.d_model * (queries + values + (0 if model.attention.tie_qk else keys))
    feed_forward = (3 if model.mlp == "swiglu" else 2) * model.d_model * model.d_ff
    table = model.vocab_size * model.embed_dim
    narrow = 0 if model.embed_dim == model.d_model else 2 * model.embed_dim * model.d_model
    return model.n_layers * (attention + feed_forward) + table * (1 if model.tie_embeddings else 2) + narrow


def policy_of(config: RunConfig) -> KVCachePolicy:
    """The policy of a configuration: its own, or `default_policy` of its model."""
    return default_policy(config.model) if config.kv_policy is None else config.kv_policy


def default_policy(model: ModelConfig) -> KVCachePolicy:
    """4, 8 and 4 bits for each tensor that they make smaller than fp16, and a window of 32 tokens where it
    takes little of the context; fp16 where nothing is smaller than it at the model's context.
    """
    shape = model.attention.resolved(d_model=model.d_model).shape
    preferred, wide = KVCachePolicy.parse(_PREFERRED), KVCachePolicy.uniform("fp16")
    heads, widths = shape.cached_heads, (shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim)
    formats = (preferred.k_sem, preferred.k_geo, preferred.v)
    k_sem, k_geo, v = map(_smaller, heads, widths, formats)
    blocks = KVCachePolicy(k_sem=k_sem, k_geo=k_geo, v=v)
    windowed = attrs.evolve(blocks, residual=preferred.residual)
    fp16 = cache_bytes(shape, 1, wide, model.context)
    fitting = [windowed, blocks] if residual_bytes(shape, windowed) <= _WINDOW_PART * fp16 else [blocks]
    smaller = [policy for policy in fitting if cache_bytes(shape, 1, policy, model.context) < fp16]
    return smaller[0] if smaller else wide


def _smaller(heads: int, width: int, blocks: TensorFormat) -> TensorFormat:
    """The block format, unless one token of the tensor takes no less in it than in fp16."""
    fp16 = TensorFormat("fp16")
    if width and tensor_bytes_per_token(heads, width, blocks) >= tensor_bytes_per_token(heads, width, fp16):
        return fp16
    return blocks


def kv_memory(shape: AttentionShape, n_layers: int, policy: KVCachePolicy, *, context: int) -> dict[str, Any]:
    """The cache of one sequence in all layers under a policy; context: the model's own.

    ratio_context, ratio: how many times smaller than standard attention's in fp16, at the context and at
    128k, which is there for scale.
    """
    own, long = memory_table(shape, n_layers, policy, (context, LONG_CONTEXT))
    layer, wide = bytes_per_token(shape, policy), KVCachePolicy.uniform("fp16")
    return {
        "bytes_per_token_per_layer": layer,
        "bytes_per_token": n_layers * layer,
        "residual_bytes": n_layers * residual_bytes(shape, policy),
        "context": context,
        "bytes_context": own.kv_bytes,
        "fp16_bytes_context": cache_bytes(shape, n_layers, wide, context),
        "standard_bytes_context": own.standard_bytes,
        "ratio_context": own.ratio,
        "long_context": LONG_CONTEXT,
        "bytes_long": long.kv_bytes,
        "fp16_bytes_per_token": n_layers * bytes_per_token(shape, wide),
        "standard_bytes_per_token": n_layers * standard_bytes_per_token(shape.d_model),
        "standard_bytes_long": long.standard_bytes,
        "ratio": long.ratio,
    }
