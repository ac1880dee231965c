"""What a run needs of memory at least, by arithmetic alone. No torch.

    at a step's end     4 P weights + 4 P gradients + 8 P AdamW
    at its middle       4 P weights + 8 P AdamW (from the second step on) + activations + 8 B T V logits

P: parameters. B: sequences of one forward pass, T: context, V: vocabulary. Logits count twice, as they
are and as log-probabilities, in float32. Activations: what every layer keeps of a token for the backward
pass, its attention weights and the gate's inputs left out. The larger of the two moments is a lower bound:
need <= peak, and the peak of what torch allocates for a run is less than three times it.
"""

from __future__ import annotations

import attrs

from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.config.training import TrainingConfig

_FLOAT = 4
_MOMENTS = 8  # AdamW's two


@attrs.frozen(kw_only=True)
class MemoryNeed:
    """Bytes of one process, at least. total: of the larger moment, not the sum. logits, activations: of one
    forward pass in training. data: of one batch of token numbers.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    data: int
    total: int


def training_need(config: RunConfig, *, parameters: int, processes: int = 1) -> MemoryNeed:
    """Of a run whose model is resolved and has so many parameters."""
    model, training = config.model, config.training
    assert model.vocab_size is not None
    sequences = _sequences(training, processes)
    tokens = sequences * model.context
    kept = 0 if training.compile else tokens * model.n_layers * _kept_per_token(model)
    weights = _FLOAT * parameters
    need = MemoryNeed(
        weights=weights,
        gradients=weights if training.steps else 0,
        optimizer=_MOMENTS * parameters if training.steps else 0,
        activations=kept * (2 if config.dtype == "bfloat16" else _FLOAT) if training.steps else 0,
        logits=2 * _FLOAT * tokens * model.vocab_size if training.steps else 0,
        data=24 * training.batch_size * model.context // processes if training.steps else 0,
        total=0,
    )
    held = need.weights + (need.optimizer if training.steps > 1 else 0)
    held += need.gradients if training.grad_accum > 1 else 0
    middle = held + need.activations + need.logits + need.data
    return attrs.evolve(need, total=max(middle, need.weights + need.gradients + need.optimizer))


def _sequences(training: TrainingConfig, processes: int) -> int:
    """Of one forward pass of one process."""
    return max(1, training.batch_size // (processes * training.grad_accum))


def _kept_per_token(model: ModelConfig) -> int:
    """Numbers that one layer keeps of a token: the inputs of both norms and of the projections behind them,
    queries, keys, values, the attention's output, and two of the feed-forward part's width.
    """
    shape = model.attention.shape
    assert model.d_ff is not None
    sem_heads, kv_heads, v_heads = shape.cached_heads
    queries = shape.n_heads * (shape.sem_head_dim + shape.geo_head_dim)
    keys = sem_heads * shape.sem_head_dim + kv_heads * shape.geo_head_dim
    values = (v_heads + shape.n_heads) * shape.v_head_dim
    return 4 * model.d_model + queries + keys + values + 2 * model.d_ff


def least_parameters(model: ModelConfig) -> int:
    """Entries of the matrices of a resolved model that no plugin makes, norms and biases left out."""
    shape = model.attention.shape
    assert model.d_ff is not None
    assert model.vocab_size is not None
    assert model.embed_dim is not None
    sem_heads, kv_heads, v_heads = shape.cached_heads
    queries = shape.n_heads * (shape.sem_head_dim + shape.geo_head_dim)
    keys = sem_heads * shape.sem_head_dim + kv_heads * shape.geo_head_dim
    values = (v_heads + shape.n_heads) * shape.v_head_dim  # and the way out
    attention = model.d_model * (queries + values + (0 if model.attention.tie_qk else keys))
    feed_forward = (3 if model.mlp == "swiglu" else 2) * model.d_model * model.d_ff
    table = model.vocab_size * model.embed_dim
    narrow = 0 if model.embed_dim == model.d_model else 2 * model.embed_dim * model.d_model
    return model.n_layers * (attention + feed_forward) + table * (1 if model.tie_embeddings else 2) + narrow
