"""The configuration of a whole run: what `dba run` reads, prints and records, and its parts but the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import MEM_SUMMARIZER, nested
from dba_core.config.model import ModelConfig
from dba_core.errors import ConfigError
from dba_core.registry.choice import PluginChoices
from dba_core.serialization.validators import (
    MAX_SEED,
    at_least,
    between,
    device_name,
    not_empty,
    one_of,
    positive,
    real_text,
)
from dba_core.serialization.values import Serializable, exact, exact_types, inside

#: Where the summarizer's name stood once, and where it stands. Files and options in either spelling are
#: accepted; no configuration object has the former field.
FORMER: tuple[str, ...] = ("model", "train_long_seq", MEM_SUMMARIZER)
PRESENT: tuple[str, ...] = ("plugins", "summarizer", "name")


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class DataConfig(Serializable):
    """What to train on.

    source: `pydoc` (the language reference inside CPython), `docstrings` (those of its standard library), or
    the path of a text file, a folder of text files, a `.npy` or a `.bin` token array. tokenizer: `bytes`, the
    path of a Hugging Face `tokenizer.json`, `tiktoken:NAME`, or `ids:VOCABULARY` for token arrays without
    text. held_out: the share of tokens at the end that is never trained on. bin_dtype: the integer type of a
    `.bin` file.
    """

    source: str = attrs.field(default="pydoc", validator=not_empty)
    tokenizer: str = attrs.field(default="bytes", validator=not_empty)
    held_out: float = attrs.field(default=0.1, validator=between(0.0001, 0.9))
    bin_dtype: str = attrs.field(default="uint16", validator=one_of("uint16", "uint32"))


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


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class RunConfig(Serializable):
    """Everything that decides a run.

    device: `auto`, `cpu`, `cuda` or `cuda:N`. dtype: that of the forward pass (`bfloat16` is autocast; the
    weights stay float32). kv_policy: None takes one that is smaller than fp16 at the model's context; a run
    records which.
    """

    name: str = attrs.field(default="default", validator=[not_empty, real_text])
    seed: int = attrs.field(default=1337, validator=between(0, MAX_SEED))
    device: str = attrs.field(default="auto", validator=device_name)
    dtype: str = attrs.field(default="float32", validator=one_of("float32", "bfloat16"))
    model: ModelConfig = attrs.field(factory=ModelConfig)
    data: DataConfig = attrs.field(factory=DataConfig)
    training: TrainingConfig = attrs.field(factory=TrainingConfig)
    evaluation: EvaluationConfig = attrs.field(factory=EvaluationConfig)
    generation: GenerationConfig = attrs.field(factory=GenerationConfig)
    kv_policy: KVCachePolicy | None = None
    plugins: PluginChoices = attrs.field(factory=PluginChoices)

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """Takes the summarizer's name in its former place too: `model.train_long_seq.mem_summarizer`."""
        return _without_former(data) if isinstance(data, Mapping) else data

    def __attrs_post_init__(self) -> None:
        self.plugins.check_layers(self.model.n_layers)


def _without_former(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's plain data with the summarizer's name in its present place; `data` as it is where it has no
    former one.

    A former name of None or `auto` says nothing; one beside the same name with a distribution before it
    (`other:conv`) is the same. Raises ConfigError for two names, and for what is no name.
    """
    model = inside("model", nested, data.get("model"))
    knobs = model.get("train_long_seq") if isinstance(model, Mapping) else None
    if not isinstance(knobs, Mapping) or MEM_SUMMARIZER not in knobs:
        return data
    stated = inside(".".join(FORMER), lambda name: exact(name, str | None), knobs[MEM_SUMMARIZER])
    kept = {key: value for key, value in knobs.items() if key != MEM_SUMMARIZER}
    rest = {**data, "model": {**model, "train_long_seq": kept}}
    plugins = data.get("plugins", {})
    choice = plugins.get("summarizer", {}) if isinstance(plugins, Mapping) else None
    choice = {"name": choice} if isinstance(choice, str) else choice
    if stated in (None, "auto") or not isinstance(choice, Mapping):
        return rest
    name = choice.get("name", "auto")
    if name == "auto":
        return {**rest, "plugins": {**plugins, "summarizer": {**choice, "name": stated}}}
    if isinstance(name, str) and name.rpartition(":")[2] != stated.rpartition(":")[2]:
        raise ConfigError(
            f"{name!r} contradicts {'.'.join(FORMER)}={stated!r}: one setting, give it once",
            path=".".join(PRESENT),
        )
    return rest
