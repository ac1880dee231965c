"""The configuration of the long-sequence path: memory tokens for the far past, full resolution nearby."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.errors import ConfigError
from dba_core.serialization.validators import at_least
from dba_core.serialization.values import Serializable, exact_types, mismatch


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class LongSequenceConfig(Serializable):
    """Knobs of the long-sequence training path, all explicit. None means "chosen from device and length".
    Which summarizer makes the memory tokens is `plugins.summarizer`, as for every plugin.

    threshold: tokens from which the path is taken; None: max(3072, 0.75 x context).
    mem_block: tokens that one memory token stands for; None: 64, on CUDA from 8192 tokens on 128.
    local_window: full-resolution tokens before the chunk; None: 512, on CUDA from 8192 tokens on 1024.
    q_chunk: query tokens per chunk; None: 128, on CUDA 256.
    mass_correction: whether a memory token's logit gains log(mem_block).
    exact_every: every so many training steps one with exact attention, which decoding uses; 0: none.
    """

    enabled: bool = True
    threshold: int | None = attrs.field(default=None, validator=at_least(1))
    mem_block: int | None = attrs.field(default=None, validator=at_least(1))
    local_window: int | None = attrs.field(default=None, validator=at_least(0))
    q_chunk: int | None = attrs.field(default=None, validator=at_least(1))
    mass_correction: bool = False
    exact_every: int = attrs.field(default=8, validator=at_least(0))

    def exact_step(self, step: int) -> bool:
        """Whether training step `step` (the first is 1) uses exact attention."""
        return self.exact_every > 0 and step % self.exact_every == 0

    def resolved(self, *, context: int, device: str = "cpu") -> ResolvedLongSequence:
        """The same with every None replaced by its number."""
        cuda = device.startswith("cuda")
        long_cuda = cuda and context >= 8192
        derived = {
            "threshold": max(3072, -(-3 * context // 4)),
            "mem_block": 128 if long_cuda else 64,
            "local_window": 1024 if long_cuda else 512,
            "q_chunk": 256 if cuda else 128,
        }
        given = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return ResolvedLongSequence(**{**derived, **given})


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class ResolvedLongSequence(LongSequenceConfig):
    """The same knobs where every number is known."""

    threshold: int = attrs.field(validator=at_least(1))
    mem_block: int = attrs.field(validator=at_least(1))
    local_window: int = attrs.field(validator=at_least(0))
    q_chunk: int = attrs.field(validator=at_least(1))

    def as_typed(self) -> LongSequenceConfig:
        """As somebody would write it who gives every number: for a configuration that is recorded."""
        return LongSequenceConfig(**attrs.asdict(self))


#: The summarizer's name stood among the knobs once.
MEM_SUMMARIZER = "mem_summarizer"
#: The flat spelling of each knob in older configurations, `train_long_seq_enabled` and so on, -> the field.
FLAT_SPELLINGS: dict[str, str] = {
    f"train_long_seq_{name}": name
    for name in (*(field.name for field in attrs.fields(LongSequenceConfig)), MEM_SUMMARIZER)
}


def nested(model: Any) -> Any:
    """The table `model` with every flat knob inside `train_long_seq`; `model` as it is where it has none.

    Raises ConfigError for a knob that is given in both spellings with different values.
    """
    if not isinstance(model, Mapping) or not FLAT_SPELLINGS.keys() & model.keys():
        return model
    given = model.get("train_long_seq", {})
    if not isinstance(given, Mapping):
        raise ConfigError(mismatch(given, "a table"), path="train_long_seq")
    knobs = dict(given)
    for flat, field in FLAT_SPELLINGS.items():
        if flat in model and knobs.setdefault(field, model[flat]) != model[flat]:
            raise ConfigError(
                f"{model[flat]!r} contradicts train_long_seq.{field}={knobs[field]!r}; give one of them",
                path=flat,
            )
    rest = {key: value for key, value in model.items() if key not in FLAT_SPELLINGS}
    return {**rest, "train_long_seq": knobs}
