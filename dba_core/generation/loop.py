"""Generate text: prefill the prompts into a KV cache, then decode one token per sequence and step.

RoPE has no last position, so sequences may grow past the context that the model was trained with; what comes
after it is outside of what the model has learned.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from dba_core.cache.kv_cache import KVCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ResolvedModel
from dba_core.config.run import GenerationConfig
from dba_core.data.tokenizers import Tokenizer
from dba_core.errors import CacheError, CheckpointError, ConfigError, DataError, DBAError, LongPromptWarning
from dba_core.generation.sampling import LogitsError, RowStreams, StopWatch, sample
from dba_core.model.language_model import LanguageModel, inference
from dba_core.model.weights import check_finite

_PREFILL_TOKENS = 512  # longest prefill chunk of one sequence
_PREFILL_ALL = 4096  # most tokens of one chunk of all sequences
_PREFILL_LEAST = 16  # shortest, whatever the number of sequences

_EXAMPLE = "give a list of prompts, each a list of tokens, as in [[72, 105]]"
_TEXT = (
    "the model takes tokens: call run.generate(text) on what load_run returns, or encode it, as in "
    "[tokenizer.encode(text).tolist()]"
)

OnToken = Callable[[int, int], None]
#: One row per prompt. A tensor is [B, T], or one [T] for each prompt; arrays of NumPy likewise.
Prompts: TypeAlias = Sequence[Sequence[int] | Tensor] | Tensor


def generate(
    model: LanguageModel,
    prompts: Prompts,
    config: GenerationConfig | None = None,
    *,
    kv_policy: KVCachePolicy | str | None = None,
    cache: KVCache | None = None,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    stop_tokens: Collection[int] | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt (token lists or integer tensors of any lengths >= 1), without the stop
    text or token. `generate(model, [[72, 105]])` is enough; for texts there is `run.generate`.

    config: None is `GenerationConfig()`: 200 new tokens, temperature 0.8, top_p 0.95; its `prompt` is not
    read. kv_policy: formats of the cache, None is fp16. cache, instead of it: the prompts continue what it
    holds, one row each, and it then also holds them and the new tokens but the last. tokenizer: needed when
    `config.stop` names texts. stop_tokens: tokens that end a sequence, () for none; None takes the
    end-of-text tokens that `tokenizer` knows of its model. seed: used where `config.seed` is None (0 if both
    are). on_token(row, token) is called in order for every token of the result as soon as it is certain that
    it belongs there. A sequence depends on its own prompt and the seed, not on the batch around it, except
    for the rounding of batched matrix products.
    Raises DataError for prompts that are no tokens, an empty one, or a token out of the vocabulary,
    ConfigError for stop texts without tokenizer, other wrong arguments, and for both kv_policy and cache,
    CacheError for too small a cache. Logits that are not finite are a CheckpointError for a damaged weight, a
    PluginError for a plugin, a DBAError otherwise. Warns (LongPromptWarning) of a prompt that exceeds the
    model's context.
    """
    config = _checked_settings(model, config, kv_policy, cache)
    lists = _checked_prompts(prompts, model.config)
    if stop_tokens is None:
        stop_tokens = tokenizer.special.eos if tokenizer is not None else ()
    ends = frozenset(stop_tokens)
    rows = [
        _Row(row, _stop_watch(config.stop, tokenizer, prompt), ends, on_token)
        for row, prompt in enumerate(lists)
    ]
    if not lists or config.max_new_tokens == 0:
        return [row.tokens for row in rows]
    chosen = config.seed if config.seed is not None else seed
    streams = RowStreams(0 if chosen is None else chosen, lists)
    own: KVCachePolicy | str | None = None
    with inference(model):
        if cache is None:
            own = KVCachePolicy() if kv_policy is None else kv_policy
            capacity = max(map(len, lists)) + config.max_new_tokens
            cache = model.new_cache(batch=len(lists), capacity=capacity, policy=own, rollback=0)
        fed: list[Tensor] = []
        try:
            _decode(model, lists, rows, cache, streams, config, fed)
        except (LogitsError, CacheError) as error:
            if own is not None:  # what a cache that was given held before is not known
                _look_for_culprit(model, error, lists, fed, own)
            if own is None or isinstance(error, CacheError):
                raise
            raise _unexplained(model, error) from error
    for row in rows:
        row.finish()
    return [row.tokens for row in rows]


def _decode(
    model: LanguageModel,
    prompts: list[list[int]],
    rows: list[_Row],
    cache: KVCache,
    streams: RowStreams,
    config: GenerationConfig,
    fed: list[Tensor],
) -> None:
    """Prefill, then one token per row and step until every row has stopped. fed: gets the tokens [B] that
    each step puts into the cache.
    """
    logits = prefill(model, prompts, cache)  # [B, V]
    for step in range(config.max_new_tokens):
        tokens = sample(
            logits.float(),
            streams.next().to(logits.device),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )  # [B]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.push(token)
        if step + 1 == config.max_new_tokens or all(row.stopped for row in rows):
            break
        fed.append(tokens)
        logits = model(tokens[:, None], cache=cache)[:, 0]  # [B, V]; stopped rows run along, unread
    cache.check_values()


def prefill(model: LanguageModel, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Put the prompts (each at least one token) into the cache, after what it holds, in chunks -> logits
    [B, V] after each prompt's last token. Shorter prompts are padded on the right; `counts` keeps the padding
    out of the cache. Logits are made of the last tokens alone.
    """
    longest = max(map(len, prompts))
    chunk = max(_PREFILL_LEAST, min(_PREFILL_TOKENS, _PREFILL_ALL // len(prompts)))
    last: dict[int, Tensor] = {}
    for start in range(0, longest, chunk):
        length = min(chunk, longest - start)
        parts = [list(prompt[start : start + length]) for prompt in prompts]
        counts = [len(part) for part in parts]
        padded = [part + [0] * (length - len(part)) for part in parts]
        tokens = torch.tensor(padded, device=model.device)  # [B, T]
        ragged = min(counts) < length
        x = model.hidden(tokens, cache=cache, counts=counts if ragged else None)  # [B, T, d_model]
        for row, prompt in enumerate(prompts):
            if start < len(prompt) <= start + length:
                last[row] = x[row, len(prompt) - 1 - start].clone()  # a view would keep the whole chunk
    return model.logits(torch.stack([last[row] for row in range(len(prompts))]))


class _Row:
    """The result of one sequence as it grows."""

    def __init__(
        self, row: int, watch: StopWatch | None, ends: frozenset[int], on_token: OnToken | None
    ) -> None:
        self.tokens: list[int] = []
        self.stopped = False
        self._row, self._watch, self._ends, self._on_token = row, watch, ends, on_token

    def push(self, token: int) -> None:
        if self.stopped:
            return
        if token in self._ends:
            self.finish()
            self.stopped = True
            return
        if self._watch is None:
            self._take([token])
            return
        self._take(self._watch.push(token))
        self.stopped = self._watch.stopped

    def finish(self) -> None:
        if self._watch is not None and not self.stopped:
            self._take(self._watch.finish())

    def _take(self, tokens: list[int]) -> None:
        self.tokens += tokens
        if self._on_token is not None:
            for token in tokens:
                self._on_token(self._row, token)


def _checked_settings(
    model: object, config: object, kv_policy: KVCachePolicy | str | None, cache: KVCache | None
) -> GenerationConfig:
    """The settings, or the defaults. Raises ConfigError for what is none, and for a cache given twice."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is a {type(model).__name__}; give a LanguageModel, as run.model is, or call run.generate"
        )
    if not isinstance(config, GenerationConfig | None):
        raise ConfigError(
            f"config={config!r} is a {type(config).__name__}; give GenerationConfig(max_new_tokens=20), say"
        )
    if kv_policy is not None and cache is not None:
        raise ConfigError("generate takes either kv_policy=, for a new cache, or cache=; give one of them")
    return GenerationConfig() if config is None else config


def _stop_watch(stops: Sequence[str], tokenizer: Tokenizer | None, prompt: Sequence[int]) -> StopWatch | None:
    if not stops:
        return None
    if "" in stops:
        raise ConfigError("an empty stop text is everywhere; leave it out", path="generation.stop")
    if tokenizer is None:
        raise ConfigError(f"stop texts {stops} need the tokenizer; give tokenizer=", path="generation.stop")
    return StopWatch(stops, tokenizer.stream(prompt))


def _checked_prompts(prompts: object, config: ResolvedModel) -> list[list[int]]:
    """The prompts as lists of plain integers inside the vocabulary, none of them empty.

    Raises DataError that names the prompt, the position and what stands there. Warns of a prompt that is
    longer than the model's context.
    """
    if isinstance(prompts, (str, bytes)):
        raise _bad_prompt(f"prompts={prompts[:40]!r} is a text, and {_TEXT}")
    lists = [
        _tokens(f"prompt {row}", prompt, config) for row, prompt in enumerate(_items(prompts, "prompts"))
    ]
    for row, tokens in enumerate(lists):
        if len(tokens) > config.context:
            warnings.warn(
                f"prompt {row} has {len(tokens)} tokens, more than the context of {config.context} that the "
                "model was trained with; what follows is outside of what it has learned",
                LongPromptWarning,
                stacklevel=3,
            )
    return lists


def _tokens(name: str, prompt: object, config: ResolvedModel) -> list[int]:
    if isinstance(prompt, (str, bytes)):
        raise _bad_prompt(f"{name} is the text {prompt[:40]!r}, and {_TEXT}")
    tokens = []
    for position, value in enumerate(_items(prompt, name)):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise _bad_prompt(
                f"{name} holds {_what(value)} at position {position}; tokens are whole numbers, 0 to "
                f"{config.vocab_size - 1}"
            )
        if not 0 <= value < config.vocab_size:
            raise _bad_prompt(
                f"{name} holds token {value} at position {position}; allowed: 0 to {config.vocab_size - 1}, "
                "the model's vocabulary"
            )
        tokens.append(int(value))
    if not tokens:
        raise _bad_prompt(f"{name} is empty; give at least one token, a line end say")
    return tokens


def _items(value: object, name: str) -> list[object]:
    """What a list, tuple, range, array or tensor holds. Raises DataError for numbers and sets, say."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0:
        return list(value) if value.ndim > 1 else value.tolist()
    if not isinstance(value, Sequence):
        raise _bad_prompt(f"{name} is {_what(value)}; {_EXAMPLE}")
    return list(value)


def _what(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    if isinstance(value, Iterable):
        return f"a {type(value).__name__}"
    return f"{value!r} ({type(value).__name__})"


def _bad_prompt(message: str) -> DataError:
    return DataError(message, path="generation.prompt")


def _look_for_culprit(
    model: LanguageModel,
    error: DBAError,
    prompts: list[list[int]],
    fed: list[Tensor],
    policy: KVCachePolicy | str,
) -> None:
    """Raise what is to blame for `error`: CheckpointError for a weight, PluginError for a plugin that does it
    again with the same tokens in a cache of its own. Returns where neither is.
    """
    try:
        for name, tensor in model.state_dict().items():
            check_finite(tensor, name=name, where="the model")
    except CheckpointError as damaged:
        raise CheckpointError(f"{error} {damaged}") from error
    before = [attention.check_every_call() for attention in model.attentions]
    capacity = max(map(len, prompts)) + len(fed)
    try:
        with contextlib.suppress(CacheError):
            cache = model.new_cache(batch=len(prompts), capacity=capacity, policy=policy, rollback=0)
            prefill(model, prompts, cache)
            for tokens in fed:
                model(tokens[:, None], cache=cache)
    finally:
        for attention, wanted in zip(model.attentions, before, strict=True):
            attention.check_every_call(wanted)


def _unexplained(model: LanguageModel, error: DBAError) -> DBAError:
    """What is said about logits that are not finite although weights and plugins' results are."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return DBAError(
        f"{error} Every weight is finite, and so was what the plugins returned when the step was repeated: "
        f"the model's own arithmetic in {dtype} exceeds its range, or the fault does not repeat. Run it in "
        "float32, or with other plugins (plugins.decode_backend=streaming)."
    )
