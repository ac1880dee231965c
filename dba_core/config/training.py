"""The configuration of the training loop and of the evaluation after it."""

from __future__ import annotations

import attrs

from dba_core.errors import ConfigError
from dba_core.serialization.validators import at_least, between, positive
from dba_core.serialization.values import Serializable, exact_types


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class TrainingConfig(Serializable):
    """AdamW with warmup and cosine decay.

    batch_size: sequences per optimizer step over all processes and accumulation steps together.
    lr: peak learning rate; min_lr_ratio: the final one as a share of it. weight_decay acts on matrices only.
    eval_every / checkpoint_every / log_every: in steps; 0 for checkpoint_every means only at evaluations.
    checkpoint_minutes: the longest time without a checkpoint, by the clock; 0 means none because of the time.
    eval_tokens: held-out tokens of an evaluation during training (the final one takes all).
    """

    steps: int = attrs.field(default=600, validator=at_least(0))
    batch_size: int = attrs.field(default=16, validator=at_least(1))
    grad_accum: int = attrs.field(default=1, validator=at_least(1))
    lr: float = attrs.field(default=2e-3, validator=positive())
    min_lr_ratio: float = attrs.field(default=0.1, validator=between(0, 1))
    warmup_steps: int = attrs.field(default=50, validator=at_least(0))
    beta1: float = attrs.field(default=0.9, validator=between(0, 1, open_high=True))
    beta2: float = attrs.field(default=0.99, validator=between(0, 1, open_high=True))
    weight_decay: float = attrs.field(default=0.1, validator=at_least(0))
    grad_clip: float = attrs.field(default=1.0, validator=at_least(0))
    eval_every: int = attrs.field(default=100, validator=at_least(1))
    eval_tokens: int = attrs.field(default=8192, validator=at_least(1))
    checkpoint_every: int = attrs.field(default=0, validator=at_least(0))
    checkpoint_minutes: float = attrs.field(default=10.0, validator=at_least(0))
    log_every: int = attrs.field(default=10, validator=at_least(1))
    compile: bool = False

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.grad_accum:
            raise ConfigError(
                f"batch_size={self.batch_size} is not a multiple of grad_accum={self.grad_accum}; "
                "batch_size counts the sequences of one whole optimizer step",
                path="grad_accum",
            )


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class EvaluationConfig(Serializable):
    """The evaluation at the end of a run.

    tokens: held-out tokens of the final loss, None for all. fidelity_tokens: held-out tokens for comparing
    the chosen KV policy with an fp32 cache through the decode path; 0 leaves it out.
    """

    tokens: int | None = attrs.field(default=None, validator=at_least(1))
    fidelity_tokens: int = attrs.field(default=4096, validator=at_least(0))
