"""The configuration of the language model around the attention."""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig, nested
from dba_core.errors import ConfigError
from dba_core.serialization.validators import at_least, between, one_of, positive
from dba_core.serialization.values import Serializable, exact_types, inside

NORMS = ("rmsnorm", "layernorm")
MLPS = ("swiglu", "gelu", "silu")


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class ModelConfig(Serializable):
    """A pre-norm transformer. None means "derived from the rest" (see `resolved`).

    vocab_size: None takes the tokenizer's. d_ff: None is 8/3 d_model, rounded up to a multiple of 8, for
    swiglu, and 4 d_model for the others. embed_dim: width of the embedding table, None is d_model; a narrower
    one is projected up on the way in and down on the way out. bias: of the feed-forward part, and of
    layernorm where norm_bias is None.
    """

    vocab_size: int | None = attrs.field(default=None, validator=at_least(1))
    context: int = attrs.field(default=128, validator=at_least(1))
    n_layers: int = attrs.field(default=4, validator=at_least(1))
    d_model: int = attrs.field(default=192, validator=at_least(1))
    d_ff: int | None = attrs.field(default=None, validator=at_least(1))
    embed_dim: int | None = attrs.field(default=None, validator=at_least(1))
    norm: str = attrs.field(default="rmsnorm", validator=one_of(*NORMS))
    norm_eps: float = attrs.field(default=1e-5, validator=positive())
    mlp: str = attrs.field(default="swiglu", validator=one_of(*MLPS))
    bias: bool = False
    norm_bias: bool | None = None
    tie_embeddings: bool = True
    dropout: float = attrs.field(default=0.0, validator=between(0, 1, open_high=True))
    attention: AttentionConfig = attrs.field(factory=AttentionConfig)
    train_long_seq: LongSequenceConfig = attrs.field(factory=LongSequenceConfig)

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """Takes the flat spelling of older configurations too: `train_long_seq_enabled` and so on."""
        return nested(data)

    def __attrs_post_init__(self) -> None:
        inside("attention", lambda attention: attention.resolved(d_model=self.d_model), self.attention)

    @property
    def has_norm_bias(self) -> bool:
        """Whether a layernorm adds a bias."""
        return self.bias if self.norm_bias is None else self.norm_bias

    def resolved(self, *, vocab_size: int | None = None) -> ResolvedModel:
        """The same with every derived number filled in. `vocab_size` is the tokenizer's."""
        vocab = self.vocab_size if self.vocab_size is not None else vocab_size
        if vocab is None:
            raise ConfigError("is missing; give the number of tokens of the vocabulary", path="vocab_size")
        if vocab_size is not None and vocab < vocab_size:
            raise ConfigError(
                f"{vocab} is smaller than the tokenizer's {vocab_size}; leave it out or give at least that",
                path="vocab_size",
            )
        d_ff = -(-8 * self.d_model // 3 // 8) * 8 if self.mlp == "swiglu" else 4 * self.d_model
        fields = {field.name: getattr(self, field.name) for field in attrs.fields(ModelConfig)}
        derived = {
            "vocab_size": vocab,
            "d_ff": self.d_ff if self.d_ff is not None else d_ff,
            "embed_dim": self.embed_dim if self.embed_dim is not None else self.d_model,
            "attention": self.attention.resolved(d_model=self.d_model),
        }
        return ResolvedModel(**{**fields, **derived})


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class ResolvedModel(ModelConfig):
    """The same where every number is known."""

    vocab_size: int = attrs.field(validator=at_least(1))
    d_ff: int = attrs.field(validator=at_least(1))
    embed_dim: int = attrs.field(validator=at_least(1))

    def as_typed(self) -> ModelConfig:
        """As somebody would write it who gives every number: for a configuration that is recorded."""
        return ModelConfig(**attrs.asdict(self, recurse=False))
