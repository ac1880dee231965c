"""A finished (or interrupted) run, loaded: its configuration, its model with trained weights, its tokenizer.

Called by `dba sample`, `dba eval` and users: `run = load_run("runs/20250101-120000-default")`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs

from dba_core.config.plugins import PluginChoice
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.data.special_tokens import SPECIAL_FILE, read_special_document
from dba_core.data.tokenizers import Tokenizer, load_tokenizer, special_of, with_special
from dba_core.errors import CheckpointError, ConfigError
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, check_records
from dba_core.runs.device import resolve_device
from dba_core.runs.folder import RunFolder, find_run
from dba_core.runs.selection import model_choices
from dba_core.training.checkpoint import load_model_weights


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """config: as recorded, but for what `load_run` was told otherwise. step: of the checkpoint `which`."""

    config: RunConfig
    model: LanguageModel
    tokenizer: Tokenizer
    folder: RunFolder
    which: str
    step: int
    warnings: tuple[str, ...] = ()


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
    tokenizer = _tokenizer(config, folder)
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


def _tokenizer(config: RunConfig, folder: RunFolder) -> Tokenizer:
    """With the special tokens that the folder of a converted model names."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    document = read_special_document(folder.path)
    if document is None:
        return tokenizer
    where = str(folder.path / SPECIAL_FILE)
    special = special_of(document, tokenizer, source=where)
    if config.model.vocab_size is not None:
        special.check(vocab_size=config.model.vocab_size, where=where)
    return with_special(tokenizer, special)


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
