"""A finished (or interrupted) run, loaded: its configuration, its model with trained weights, its tokenizer.

Called by `dba sample`, `dba eval` and users: `run = load_run("runs/20250101-120000-default")`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import attrs

from dba_core.config.generation import GenerationConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.plugins import PluginChoice
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.data.tokenizers import Tokenizer, load_tokenizer
from dba_core.errors import CheckpointError, ConfigError
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, check_records
from dba_core.runs.device import resolve_device
from dba_core.runs.folder import RunFolder, find_run
from dba_core.runs.kv_memory import policy_of
from dba_core.runs.sample import Continuation, OnText, continue_prompts, encode_texts, with_settings
from dba_core.runs.selection import model_choices
from dba_core.training.checkpoint import load_model_weights


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Run:
    """config: as recorded, but for what `load_run` was told otherwise. step: of the checkpoint `which`."""

    config: RunConfig
    model: LanguageModel
    tokenizer: Tokenizer
    folder: RunFolder
    which: str
    step: int
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"<Run {str(self.folder.path)!r}: {self.which} weights of step {self.step}, "
            f"{model.attention.mode}, {model.n_layers} layers of width {model.d_model}, "
            f"{self.model.n_parameters:,} parameters, context {model.context}, vocabulary "
            f"{model.vocab_size:,}, {self.kv_policy.short}, on {self.model.device}>"
        )

    @property
    def kv_policy(self) -> KVCachePolicy:
        """The policy that the run recorded."""
        return policy_of(self.config)

    @overload
    def generate(
        self, prompts: str, *, kv_policy: KVCachePolicy | str | None = None, **settings: Any
    ) -> str: ...
    @overload
    def generate(
        self,
        prompts: list[str] | tuple[str, ...],
        *,
        kv_policy: KVCachePolicy | str | None = None,
        **settings: Any,
    ) -> list[str]: ...
    def generate(
        self,
        prompts: str | list[str] | tuple[str, ...],
        *,
        kv_policy: KVCachePolicy | str | None = None,
        **settings: Any,
    ) -> str | list[str]:
        """The text that continues a text, without it; a list of texts gives a list, made as one batch.

        settings: `max_new_tokens`, `temperature`, `top_k` (0 is off), `top_p` (1 is off), `seed` and `stop`
        (texts); what is left out is as in the run's configuration. kv_policy: None is the run's. `dba sample`
        does the same. Raises DataError for an empty prompt or one that is no text, ConfigError for wrong
        settings.
        """
        generation = with_settings(self.config.generation, **settings)
        policy = KVCachePolicy.parse(kv_policy) if isinstance(kv_policy, str) else kv_policy
        if isinstance(prompts, str):
            return self.continuations([prompts], generation, kv_policy=policy)[0].text
        return [each.text for each in self.continuations(prompts, generation, kv_policy=policy)]

    def continuations(
        self,
        texts: Sequence[str],
        generation: GenerationConfig,
        *,
        kv_policy: KVCachePolicy | None = None,
        on_text: OnText = lambda row, text: None,
    ) -> list[Continuation]:
        """The same with whole settings, with the tokens, and with `on_text(row, piece)` as text is made."""
        return continue_prompts(
            self.model,
            self.tokenizer,
            encode_texts(self.tokenizer, texts),
            generation,
            kv_policy=self.kv_policy if kv_policy is None else kv_policy,
            seed=self.config.seed,
            on_text=on_text,
        )


def load_run(
    path: str | Path,
    which: str = "best",
    *,
    device: str | None = None,
    plugins: Mapping[Kind, PluginChoice] | None = None,
    registry: Registry | None = None,
    allow_drift: bool = False,
) -> Run:
    """Load the run that `path` means: its folder, a unique part of its name under `runs/`, or `latest`.

    which: the `best` or the `last` checkpoint. device: another than the recorded one. plugins: choices that
    replace recorded ones, in every layer. Raises UsageError for no such run, RecordMismatchError for other
    plugin versions, CheckpointError for a checkpoint that is missing, damaged or of another model.
    """
    folder = find_run(path)
    registry = Registry.default() if registry is None else registry
    config = _with_own_tokenizer(read_resolved(folder), folder)
    choices = config.plugins
    for kind, choice in (plugins or {}).items():
        choices = choices.in_all_layers(kind, choice)
    config = attrs.evolve(config, device=resolve_device(device or config.device), plugins=choices)
    warnings = check_records(config.plugins, registry, allow_drift)
    tokenizer = load_tokenizer(config.data.tokenizer)
    model = LanguageModel(
        config.model,
        plugins=model_choices(config.plugins),
        registry=registry,
        seed=config.seed,
        device=config.device,
    )
    stored = load_model_weights(model, folder.checkpoint, which=which)
    return Run(
        config=config,
        model=model.eval(),
        tokenizer=tokenizer,
        folder=folder,
        which=which,
        step=stored.state["step"],
        warnings=tuple(warnings),
    )


def _with_own_tokenizer(config: RunConfig, folder: RunFolder) -> RunConfig:
    """A tokenizer that the run's folder holds (a converted model's) is found wherever the folder is."""
    own = folder.path / config.data.tokenizer
    if not own.is_file():
        return config
    return attrs.evolve(config, data=attrs.evolve(config.data, tokenizer=str(own)))


def read_resolved(folder: RunFolder) -> RunConfig:
    """The configuration that a run recorded. Raises ConfigError with the file's name."""
    try:
        data = json.loads(folder.config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.config_file} is missing; {folder.path} is no run's folder") from None
    except ValueError as error:
        raise ConfigError(
            f"{folder.config_file} is not valid JSON ({error}); restore it or start a new run"
        ) from None
    try:
        return RunConfig.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{error.message} (in {folder.config_file})", path=error.path) from None
