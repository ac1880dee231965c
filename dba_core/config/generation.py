"""The configuration of text generation."""

from __future__ import annotations

import attrs

from dba_core.serialization.validators import MAX_SEED, at_least, between, real_text
from dba_core.serialization.values import Serializable, exact_types


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class GenerationConfig(Serializable):
    """How text is sampled.

    temperature 0 takes the likeliest token. top_k / top_p: None is off. seed: None takes the run's.
    stop: generation of a sequence ends before the first of these texts. prompt: None takes the start of the
    held-out text.
    """

    prompt: str | None = attrs.field(default=None, validator=real_text)
    max_new_tokens: int = attrs.field(default=200, validator=at_least(0))
    temperature: float = attrs.field(default=0.8, validator=at_least(0))
    top_k: int | None = attrs.field(default=None, validator=at_least(1))
    top_p: float | None = attrs.field(default=0.95, validator=between(1e-6, 1))
    seed: int | None = attrs.field(default=None, validator=between(0, MAX_SEED))
    stop: tuple[str, ...] = attrs.field(default=(), validator=real_text)
