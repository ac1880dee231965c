"""Texts continued by a run's model: for `run.generate`, and the sample that a run leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import GenerationConfig
from dba_core.data.chat import Reading
from dba_core.data.tokenizers import Tokenizer
from dba_core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel
    from dba_core.runs.prepare import Prepared

#: Tokens of the held-out text that stand in for a prompt.
_PROMPT_TOKENS = 64
#: What of a run's generation settings can be given anew.
SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")

OnText = Callable[[int, str], None]


@attrs.frozen
class Continuation:
    """What was added to one prompt: the new tokens, and the text that they add; the prompt's own tokens."""

    text: str
    tokens: list[int]
    prompt_tokens: list[int]


_READING = frozenset(field.name for field in attrs.fields(Reading))


def settings_of(recorded: GenerationConfig, **given: Any) -> tuple[GenerationConfig, Reading]:
    """The run's settings with those of SETTINGS that are given over them, and how prompts are read."""
    reading = Reading(**{name: given.pop(name) for name in _READING if name in given})
    return with_settings(recorded, **given), reading


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
    from dba_core.generation.loop import generate

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


@attrs.frozen(kw_only=True)
class SampleFacts:
    """A sample under the run's KV policy."""

    prompt: str
    text: str
    temperature: float
    seed: int


def sample_run(prepared: Prepared) -> SampleFacts:
    """Sample under the run's KV policy with its generation settings, from the configured prompt or from the
    held-out text's beginning.
    """
    config, tokenizer = prepared.config, prepared.corpus.tokenizer
    generation = config.generation
    seed = generation.seed if generation.seed is not None else config.seed
    if generation.prompt is not None:
        prompt = tokenizer.encode(generation.prompt).tolist()
    else:
        prompt = prepared.corpus.held_out[: min(_PROMPT_TOKENS, config.model.context)].tolist()
    (made,) = continue_prompts(
        prepared.model, tokenizer, [prompt], generation, kv_policy=prepared.kv_policy, seed=seed
    )
    return SampleFacts(
        prompt=tokenizer.decode(prompt), text=made.text, temperature=generation.temperature, seed=seed
    )


def samples_text(sample: SampleFacts, *, policy: str) -> str:
    """`samples.txt`."""
    head = f"temperature {sample.temperature:g}, seed {sample.seed}, KV policy {policy}"
    return f"{head}\n\n--- prompt\n{sample.prompt}\n--- continuation\n{sample.text}\n"
