"""A finished (or interrupted) run, loaded: its configuration, its model with trained weights, its tokenizer.

run = load_run("runs/20250101-120000-default")
run.generate("The ")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import GenerationConfig, RunConfig
from dba_core.contracts import Kind
from dba_core.data.chat import Reading
from dba_core.data.corpus import Corpus
from dba_core.data.special_tokens import SPECIAL_FILE, read_special_document
from dba_core.data.tokenizers import Tokenizer, load_tokenizer, special_of, with_special
from dba_core.errors import ConfigError, RecordMismatchError, unknown
from dba_core.free_memory import many, require_memory
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, check_records
from dba_core.registry.choice import PluginChoice
from dba_core.runs.estimate import least_parameters, policy_of
from dba_core.runs.folder import RunFolder, find_run, read_resolved, resuming
from dba_core.runs.prepare import model_choices, resolve_device, resolved_model
from dba_core.training.checkpoint import StoredCheckpoint, read_checkpoint, restore_weights
from dba_core.training.fingerprint import (
    TRAINED_KINDS,
    check_written_by,
    corpus_fingerprint,
    differences,
    settings_fingerprint,
    unlike,
)

#: What of a run's generation settings can be given anew, and how prompts are read.
SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
_READING = tuple(field.name for field in attrs.fields(Reading))

OnText = Callable[[int, str], None]


@attrs.frozen
class Continuation:
    """What was added to one prompt: the new tokens, and the text that they add; the prompt's own tokens."""

    text: str
    tokens: list[int]
    prompt_tokens: list[int]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Run:
    """config: as recorded, but for what `load_run` was told otherwise. step: of the checkpoint `which`.

    trained_on: what the checkpoint says of its corpus (`corpus_fingerprint`), None where it says nothing.
    """

    config: RunConfig
    model: LanguageModel
    tokenizer: Tokenizer
    folder: RunFolder
    which: str
    step: int
    warnings: tuple[str, ...] = ()
    trained_on: Mapping[str, Any] | None = None
    allow_drift: bool = False

    def check_corpus(self, corpus: Corpus) -> None:
        """Raise RecordMismatchError unless the run's own corpus, read again, is what it was trained on.

        A run that was loaded with allow_drift takes another text; a run that does not know takes any.
        """
        if self.trained_on is None or self.allow_drift:
            return
        changed = "; ".join(differences({"data": self.trained_on}, {"data": corpus_fingerprint(corpus)}))
        if changed:
            raise RecordMismatchError(
                f"{corpus.name!r} is not the text that {self.folder.path} was trained on: {changed}. What is "
                "held out now may have been trained on. Restore that text, give other text with data=, or "
                "take this one with allow_drift=True"
            )

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"<Run {str(self.folder.path)!r}: {self.which} weights of step {self.step}, "
            f"{model.attention.mode}, {model.n_layers} layers of width {model.d_model}, "
            f"{self.model.n_parameters:,} parameters, context {model.context}, vocabulary "
            f"{model.vocab_size:,}, {self.kv_policy.short}, "
            f"{self.model.weight_format or 'unpacked'} weights, on {self.model.device}>"
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
        (texts); what is left out is as in the run's configuration. `chat=True`, `system`, `bos`, `eos`: see
        `dba_core.data.chat.Reading`. kv_policy: None is the run's. Raises
        DataError for an empty prompt or one that is no text, ConfigError and UsageError for wrong settings.
        """
        reading = Reading(**{name: settings.pop(name) for name in _READING if name in settings})
        generation = with_settings(self.config.generation, **settings)
        policy = KVCachePolicy.parse(kv_policy) if isinstance(kv_policy, str) else kv_policy
        texts = [prompts] if isinstance(prompts, str) else prompts
        made = self.continuations(texts, generation, reading=reading, kv_policy=policy)
        return made[0].text if isinstance(prompts, str) else [each.text for each in made]

    def continuations(
        self,
        texts: Sequence[str],
        generation: GenerationConfig,
        *,
        reading: Reading | None = None,
        kv_policy: KVCachePolicy | None = None,
        on_text: OnText = lambda row, text: None,
    ) -> list[Continuation]:
        """The same with whole settings, with the tokens, and with `on_text(row, piece)` as text is made."""
        reading = Reading() if reading is None else reading
        return continue_prompts(
            self.model,
            self.tokenizer,
            reading.tokens(self.tokenizer, texts),
            generation,
            stop_tokens=reading.stop_tokens(self.tokenizer),
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
    weights: str | PluginChoice | None = None,
) -> Run:
    """Load the run that `path` means: its folder, a unique part of its name under `runs/`, or `latest`,
    the newest that has such a checkpoint and can be read.

    which: the `best` or the `last` checkpoint. device: another than the recorded one. plugins: choices that
    replace recorded ones, in every layer. weights: a format that the model's weights are packed by in memory
    (`int8`, say; the checkpoint stays as it is), None for none. Raises UsageError for no such run,
    RecordMismatchError for other plugin versions and for a checkpoint that another configuration wrote,
    CheckpointError for one that is missing, damaged or of another model.
    """
    folder = find_run(path, weights=which)
    registry = Registry.default() if registry is None else registry
    config = read_resolved(folder)
    choices = config.plugins
    for kind, choice in (plugins or {}).items():
        choices = choices.in_all_layers(kind, choice)
    config = attrs.evolve(config, device=resolve_device(device or config.device), plugins=choices)
    warnings = check_records(config.plugins, registry, allow_drift)
    config, tokenizer = _with_own_tokenizer(config, folder)
    size = config.model.vocab_size or tokenizer.vocab_size
    parameters = least_parameters(resolved_model(config, vocab_size=size))
    for place in ("cpu", config.device):  # the weights are made on the CPU
        require_memory(
            4 * parameters,
            device=place,
            what=f"the model of {folder.path} ({many(parameters)} parameters)",
            smaller="the model, if its configuration is not damaged,",
        )
    model = LanguageModel(
        config.model,
        plugins=model_choices(config.plugins),
        registry=registry,
        seed=config.seed,
        device=config.device,
    )
    stored = read_checkpoint(folder.checkpoint, which)
    notes = _check_fingerprint(stored, model, config, replaced=set(plugins or {}), allow_drift=allow_drift)
    restore_weights(model, stored)
    if config.training.steps and not folder.summary_json.is_file():
        notes.append(
            f"{folder.path} did not finish; these are the weights of step {stored.state['step']}, and it has "
            f"{config.training.steps}. Go on with: {resuming(folder)}"
        )
    if weights is not None and (left := model.eval().pack_weights(weights, registry=registry)):
        notes.append(
            f"the weights of {', '.join(left)} are not packed, since more happens there than a product"
        )
    trained_on = (stored.fingerprint or {}).get("data")
    return Run(
        config=config,
        model=model.eval(),
        tokenizer=tokenizer,
        folder=folder,
        which=which,
        step=stored.state["step"],
        warnings=(*warnings, *notes),
        trained_on=trained_on if isinstance(trained_on, dict) else None,
        allow_drift=allow_drift,
    )


def _check_fingerprint(
    stored: StoredCheckpoint,
    model: LanguageModel,
    config: RunConfig,
    *,
    replaced: set[Kind],
    allow_drift: bool,
) -> list[str]:
    """That this configuration wrote these weights. Returns what was let pass, as warnings.

    replaced: kinds of plugin that the caller chose anew. Raises RecordMismatchError with what differs.
    """
    before = stored.fingerprint
    if before is None:
        return [
            f"{stored.path} does not say which configuration wrote it (an older version did); it is taken to "
            "be this run's"
        ]
    device = before.get("device")
    now = settings_fingerprint(
        config,
        settings=model.config,
        attentions=model.attentions,
        device=device if isinstance(device, str) else model.device.type,
    )
    del now["device"]  # weights may be read on another one
    if replaced & set(TRAINED_KINDS):
        del now["plugins"]
    drifted = list(unlike(before, {"plugins": now.pop("plugins", {})})) if allow_drift else []
    check_written_by(stored.path, before, now)
    return drifted


def _with_own_tokenizer(config: RunConfig, folder: RunFolder) -> tuple[RunConfig, Tokenizer]:
    """A tokenizer that the run's folder holds (a converted model's) is found wherever the folder is, and has
    the special tokens that the folder names.
    """
    own = folder.path / config.data.tokenizer
    if own.is_file():
        config = attrs.evolve(config, data=attrs.evolve(config.data, tokenizer=str(own)))
    tokenizer = load_tokenizer(config.data.tokenizer)
    document = read_special_document(folder.path)
    if document is not None:
        where = str(folder.path / SPECIAL_FILE)
        special = special_of(document, tokenizer, source=where)
        if config.model.vocab_size is not None:
            special.check(vocab_size=config.model.vocab_size, where=where)
        tokenizer = with_special(tokenizer, special)
    return config, tokenizer


def with_settings(recorded: GenerationConfig, **given: Any) -> GenerationConfig:
    """The run's settings with those of SETTINGS that are given over them: None, () and [] leave one as it
    is, top_k 0 and top_p 1 are off.

    Raises ConfigError for a name or a value that is not allowed.
    """
    for name in given:
        if name not in SETTINGS:
            raise ConfigError(unknown("setting", name, {*SETTINGS, *_READING}))
    changes: dict[str, Any] = {name: value for name, value in given.items() if value not in (None, (), [])}
    if "stop" in changes:
        stop = changes["stop"]
        changes["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if changes.get("top_k") == 0:
        changes["top_k"] = None
    return attrs.evolve(recorded, **changes)


def continue_prompts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    kv_policy: KVCachePolicy,
    seed: int,
    stop_tokens: tuple[int, ...] | None = None,
    on_text: OnText = lambda row, text: None,
) -> list[Continuation]:
    """Continue every prompt (tokens). on_text(row, text) is called with each piece of text as it is made.
    stop_tokens: None is the end-of-text tokens that the tokenizer knows.
    """
    streams = [tokenizer.stream(context=prompt) for prompt in prompts]
    pieces: list[list[str]] = [[] for _ in prompts]

    def take(row: int, piece: str) -> None:
        pieces[row].append(piece)
        on_text(row, piece)

    new = generate(
        model,
        prompts,
        generation,
        kv_policy=kv_policy,
        tokenizer=tokenizer,
        seed=seed,
        stop_tokens=stop_tokens,
        on_token=lambda row, token: take(row, streams[row].push([token])),
    )
    for row, stream in enumerate(streams):
        take(row, stream.finish())
    return [
        Continuation("".join(text), tokens, list(prompt))
        for text, tokens, prompt in zip(pieces, new, prompts, strict=True)
    ]
